"""Trains an embedding model from a config, or goes on with a run whose working directory holds a checkpoint.

Example:
  python launch/train.py --config configs/quickstart.py --workdir runs/mine --config.train.steps=600
  python launch/train.py --config configs/small_pairs.py --config.data.sources.pairs.path=my/pairs

Keys of the config are set with --config.section.key=value; configs/base.py says what each is. SIGTERM saves and exits with status 42; the
same command goes on from there. On several hosts, start the same command on each: on a TPU pod they find each other, elsewhere give
--coordinator, --processes and --process.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from cpt_jax.errors import UserError
from cpt_jax.program import define_config, define_processes, run_program

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory; by default runs/NAME for a config NAME.py.")
_JOINED = define_processes()
flags.declare_key_flag('config')


def main() -> int:
    name, config = _CONFIG()
    from cpt_jax.program import use_compilation_cache
    from cpt_jax.train.loop import train

    use_compilation_cache()
    workdir = Path(_WORKDIR.value or f'runs/{name}')
    if '://' in str(_WORKDIR.value):
        raise UserError(f'--workdir {_WORKDIR.value}: only paths of the file system so far; mount the bucket (gcsfuse) and give that path')
    with _JOINED():
        return train(config.to_dict(), workdir)


if __name__ == '__main__':
    run_program(main)
