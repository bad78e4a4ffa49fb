"""The program of cpt_jax/cli/export.py; --help tells more."""

from cpt_jax.cli.export import run

if __name__ == '__main__':
    run()
