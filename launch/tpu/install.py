"""Runs cpt_jax/cli/tpu/install.py; see --help."""

from cpt_jax.cli.tpu.install import run

if __name__ == '__main__':
    run()
