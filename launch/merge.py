"""Runs cpt_jax/cli/merge.py; see --help."""

from cpt_jax.cli.merge import run

if __name__ == '__main__':
    run()
