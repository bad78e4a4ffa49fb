"""Runs cpt_jax/cli/tpu/accept.py; see --help."""

from cpt_jax.cli.tpu.accept import run

if __name__ == '__main__':
    run()
