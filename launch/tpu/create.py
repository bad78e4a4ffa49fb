"""The program of cpt_jax/cli/tpu/create.py; --help tells more."""

from cpt_jax.cli.tpu.create import run

if __name__ == '__main__':
    run()
