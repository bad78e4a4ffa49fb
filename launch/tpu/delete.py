"""Runs cpt_jax/cli/tpu/delete.py; see --help."""

from cpt_jax.cli.tpu.delete import run

if __name__ == '__main__':
    run()
