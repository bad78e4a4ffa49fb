"""Runs cpt_jax/cli/demonstrations.py; see --help."""

from cpt_jax.cli.demonstrations import run

if __name__ == '__main__':
    run()
