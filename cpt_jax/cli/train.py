"""Trains an embedding model from a config, or resumes the run in its working directory.

Example:
  python launch/train.py --config configs/quickstart.py --workdir runs/mine --config.train.steps=600
  python launch/train.py --config configs/finetune.py:models/all-MiniLM-L6-v2 \
      --config.data.sources.pairs.path=my/pairs
  python launch/train.py --config configs/prompteol.py:opt-13b --config.init_from=$HOME/opt-13b

Set keys of the config with --config.section.key=value; configs/base.py explains every key. Default
arguments of a data source that the config does not mention are set in the same way, for example
--config.data.sources.pairs.max_bad_share=0.1.

On SIGTERM the program saves a checkpoint and exits with status 42; run the same command to resume.
To train on several hosts, start the same command on each. On a TPU pod the processes find each
other; elsewhere, give --coordinator, --processes and --process.
"""

from absl import flags

from cpt_jax.cli.config_flag import define_config_flag
from cpt_jax.cli.program import define_process_flags, run_program, use_compilation_cache
from cpt_jax.runs.config_file import find_default_workdir
from cpt_jax.runtime.early_stop import exit_on_sigterm
from cpt_jax.storage.paths import make_path

_read_config = define_config_flag()
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run. Default: runs/NAME for NAME.py and runs/NAME-ARGUMENT for '
    'NAME.py:ARGUMENT, where characters other than letters, digits and . _ = , + - become -.',
)
_PROFILE_PORT = flags.DEFINE_integer(
    'profile_port',
    0,
    'Port at which each process serves profiler traces, for xprof or jax.profiler; 0: none.',
    lower_bound=0,
    upper_bound=65535,
)
_join_processes = define_process_flags()
flags.declare_key_flag('config')


def main() -> int:
    name, config, given = _read_config()
    from cpt_jax.training.loop import train
    from cpt_jax.training.profiling import serve_traces

    use_compilation_cache()
    workdir = find_default_workdir(name)
    if _WORKDIR.value:
        workdir = make_path(_WORKDIR.value, '--workdir')
    with _join_processes():
        if _PROFILE_PORT.value:
            serve_traces(_PROFILE_PORT.value)
        return train(config.to_dict(), workdir, given)


def run() -> None:
    """Runs the console script cpt-train."""
    exit_on_sigterm()
    run_program(main)
