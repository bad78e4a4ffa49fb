"""The program of cpt_jax/cli/embed.py; --help tells more."""

from cpt_jax.cli.embed import run

if __name__ == '__main__':
    run()
