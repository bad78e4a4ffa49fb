"""Runs cpt_jax/cli/tpu/stop.py; see --help."""

from cpt_jax.cli.tpu.stop import run

if __name__ == '__main__':
    run()
