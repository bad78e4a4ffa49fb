"""The program of cpt_jax/cli/tpu/delete.py; --help tells more."""

from cpt_jax.cli.tpu.delete import run

if __name__ == '__main__':
    run()
