"""Runs cpt_jax/cli/mine.py; see --help."""

from cpt_jax.cli.mine import run

if __name__ == '__main__':
    run()
