"""Runs cpt_jax/cli/export.py; see --help."""

from cpt_jax.cli.export import run

if __name__ == '__main__':
    run()
