"""Runs cpt_jax/cli/tpu/watch.py; see --help."""

from cpt_jax.cli.tpu.watch import run

if __name__ == '__main__':
    run()
