"""The program of cpt_jax/cli/train.py; --help tells more."""

from cpt_jax.cli.train import run

if __name__ == '__main__':
    run()
