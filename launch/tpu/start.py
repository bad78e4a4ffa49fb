"""Runs cpt_jax/cli/tpu/start.py; see --help."""

from cpt_jax.cli.tpu.start import run

if __name__ == '__main__':
    run()
