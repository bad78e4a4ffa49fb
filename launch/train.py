"""Runs cpt_jax/cli/train.py; see --help."""

if __name__ == '__main__':
    from cpt_jax.runtime.early_stop import exit_on_sigterm

    exit_on_sigterm()  # the imports of the next line take long enough for a preemption

    from cpt_jax.cli.train import run

    run()
