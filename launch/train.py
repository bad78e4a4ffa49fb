"""Trains an embedding model from a config, or goes on with a run whose working directory holds a checkpoint.

Example: python launch/train.py --config configs/quickstart.py --workdir runs/mine --config.train.steps=600

Keys of the config are set with --config.section.key=value. SIGTERM saves and exits with status 42; the same command goes on from there.
On several hosts, start the same command on each: on a TPU pod they find each other, elsewhere give --coordinator, --processes and
--process.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from cpt_jax.errors import UserError
from cpt_jax.program import define_config, run_program

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory; by default runs/NAME for a config NAME.py.")
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'host:port of process 0, where no cluster tells it.')
_PROCESSES = flags.DEFINE_integer('processes', 1, 'Number of processes, with --coordinator.')
_PROCESS = flags.DEFINE_integer('process', 0, 'Number of this process, from 0, with --coordinator.')
flags.declare_key_flag('config')


def main() -> int:
    name, config = _CONFIG()
    from cpt_jax.processes import join_processes, shared_fate
    from cpt_jax.program import use_compilation_cache
    from cpt_jax.train.loop import train

    use_compilation_cache()
    join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    workdir = Path(_WORKDIR.value or f'runs/{name}')
    if '://' in str(_WORKDIR.value):
        raise UserError(f'--workdir {_WORKDIR.value}: only paths of the file system so far; mount the bucket (gcsfuse) and give that path')
    with shared_fate():
        return train(config.to_dict(), workdir)


if __name__ == '__main__':
    run_program(main)
