"""Runs cpt_jax/cli/tpu/resume.py; see --help."""

from cpt_jax.cli.tpu.resume import run

if __name__ == '__main__':
    run()
