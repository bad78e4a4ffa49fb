"""Runs cpt_jax/cli/plan.py; see --help."""

from cpt_jax.cli.plan import run

if __name__ == '__main__':
    run()
