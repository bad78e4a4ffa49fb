"""Runs cpt_jax/cli/train.py; see --help."""

from cpt_jax.cli.train import run

if __name__ == '__main__':
    run()
