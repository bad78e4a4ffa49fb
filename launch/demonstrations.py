"""The program of cpt_jax/cli/demonstrations.py; --help tells more."""

from cpt_jax.cli.demonstrations import run

if __name__ == '__main__':
    run()
