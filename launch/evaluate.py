"""Runs cpt_jax/cli/evaluate.py; see --help."""

from cpt_jax.cli.evaluate import run

if __name__ == '__main__':
    run()
