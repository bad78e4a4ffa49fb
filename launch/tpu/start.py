"""The program of cpt_jax/cli/tpu/start.py; --help tells more."""

from cpt_jax.cli.tpu.start import run

if __name__ == '__main__':
    run()
