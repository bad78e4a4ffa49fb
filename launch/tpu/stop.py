"""The program of cpt_jax/cli/tpu/stop.py; --help tells more."""

from cpt_jax.cli.tpu.stop import run

if __name__ == '__main__':
    run()
