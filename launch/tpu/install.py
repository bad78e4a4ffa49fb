"""The program of cpt_jax/cli/tpu/install.py; --help tells more."""

from cpt_jax.cli.tpu.install import run

if __name__ == '__main__':
    run()
