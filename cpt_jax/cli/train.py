"""Trains an embedding model from a config, or goes on with a run whose working directory holds a
checkpoint.

Example:
  python launch/train.py --config configs/quickstart.py --workdir runs/mine --config.train.steps=600
  python launch/train.py --config configs/small_pairs.py --config.data.sources.pairs.path=my/pairs
  python launch/train.py --config configs/prompteol.py:opt-13b --config.init_from=$HOME/opt-13b

Keys of the config are set with --config.section.key=value; configs/base.py explains each. A key of
a source that the config leaves to its default is set the same way, for example
--config.data.sources.pairs.max_bad_share=0.1.

SIGTERM saves and exits with status 42; the same command goes on from there. On several hosts, start
the same command on each: on a TPU pod they find each other, elsewhere give --coordinator,
--processes and --process.
"""

from absl import flags

from cpt_jax.cli.config_flag import define_config
from cpt_jax.cli.program import define_processes, run_program, use_compilation_cache
from cpt_jax.runs.config_file import default_workdir
from cpt_jax.storage.local_path import local_path

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    "The run's directory. Default: runs/NAME for NAME.py and runs/NAME-ARGUMENT for "
    'NAME.py:ARGUMENT, where characters other than letters, digits and . _ = , + - become -.',
)
_JOINED = define_processes()
flags.declare_key_flag('config')


def main() -> int:
    name, config = _CONFIG()
    from cpt_jax.training.loop import train

    use_compilation_cache()
    workdir = default_workdir(name)
    if _WORKDIR.value:
        workdir = local_path(_WORKDIR.value, '--workdir')
    with _JOINED():
        return train(config.to_dict(), workdir)


def run() -> None:
    """The console script cpt-train."""
    run_program(main)
