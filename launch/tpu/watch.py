"""The program of cpt_jax/cli/tpu/watch.py; --help tells more."""

from cpt_jax.cli.tpu.watch import run

if __name__ == '__main__':
    run()
