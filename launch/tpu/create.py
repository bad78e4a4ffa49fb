"""Runs cpt_jax/cli/tpu/create.py; see --help."""

from cpt_jax.cli.tpu.create import run

if __name__ == '__main__':
    run()
