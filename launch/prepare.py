"""Runs cpt_jax/cli/prepare.py; see --help."""

from cpt_jax.cli.prepare import run

if __name__ == '__main__':
    run()
