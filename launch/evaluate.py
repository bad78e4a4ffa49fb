"""The program of cpt_jax/cli/evaluate.py; --help tells more."""

from cpt_jax.cli.evaluate import run

if __name__ == '__main__':
    run()
