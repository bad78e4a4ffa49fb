"""The program of cpt_jax/cli/tpu/resume.py; --help tells more."""

from cpt_jax.cli.tpu.resume import run

if __name__ == '__main__':
    run()
