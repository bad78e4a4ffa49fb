"""Runs cpt_jax/cli/embed.py; see --help."""

from cpt_jax.cli.embed import run

if __name__ == '__main__':
    run()
