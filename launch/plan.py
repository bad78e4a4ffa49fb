"""The program of cpt_jax/cli/plan.py; --help tells more."""

from cpt_jax.cli.plan import run

if __name__ == '__main__':
    run()
