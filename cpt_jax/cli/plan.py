r"""Tells whether a training step, or embedding, fits a TPU topology and how fast it can be at best:
libtpu compiles it here, without a TPU.

Example:
  python launch/plan.py --config configs/cpt_l.py --topology v5p:4x4x4 --json plan.json
  python launch/plan.py --config configs/prompteol.py:opt-66b --topology v5e:4x4 --program embed \
      --fsdp 16

The step is the one that launch/train.py runs; keys of the config are set with
--config.section.key=value. Several topologies may be given, with commas. --sweep tries meshes,
remat policies and numbers of chunks instead of those of the config, and names the fastest that
fits.

--program embed plans what launch/evaluate.py and launch/embed.py run instead: a full batch of
texts, one a row, with the parameters alone. Times are lower bounds: arithmetic, memory and network
each at their peak and all at once. A real run is slower.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config
from cpt_jax.cli.program import run_program
from cpt_jax.runtime.errors import UserError

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_list(
    'topology',
    [],
    'TPU slices, such as v5p:4x4x4 or v5e:8x8,v6e:8x8. Chips: v4, v5e, v5p, v6e, tpu7x.',
)
_SLICES = flags.DEFINE_integer(
    'slices', 1, 'Slices of that topology that train together; they divide mesh.data.'
)
_JSON = flags.DEFINE_string(
    'json', '', 'Also write the figures to this file: an object, or a list where there are several.'
)
_SWEEP = flags.DEFINE_boolean(
    'sweep',
    False,
    'Try meshes, remat policies and numbers of chunks, and name the fastest that fits.',
)
_LIMIT = flags.DEFINE_integer(
    'sweep_limit', 8, 'Programs that a sweep compiles at most, those that promise most.'
)
_PROGRAM = flags.DEFINE_enum(
    'program',
    'train',
    ['train', 'embed'],
    'The training step, or the model at work on a batch of texts.',
)
# Of --program embed alone; None: not given.
_FSDP = flags.DEFINE_integer(
    'fsdp',
    None,
    'To embed: devices that share one copy of the parameters; 1 by default.',
    lower_bound=1,
)
_LENGTH = flags.DEFINE_integer(
    'length',
    None,
    'To embed: tokens of a text; by default as many as the config trains with.',
    lower_bound=1,
)
_WEIGHTS = flags.DEFINE_enum(
    'weights',
    None,
    ['bfloat16', 'float32'],
    'To embed: how parameters are kept. bfloat16 as in files of published language models, the '
    'default of configs with a prompt.template; float32 as in checkpoints of runs, that of the '
    'others. With LoRA, lora.base says it.',
)
flags.declare_key_flag('config')


def main() -> None:
    _, config = _CONFIG()
    if not _TOPOLOGY.value:
        raise UserError('--topology is missing: give a TPU slice such as v5p:4x4x4')
    options = _embedding_options()
    import jax

    from cpt_jax.origin.resolve import is_there
    from cpt_jax.plan.embedding import AnyPlan, make_embedding_plan
    from cpt_jax.plan.planning import make_plan
    from cpt_jax.plan.report import plan_all, sweep_all

    # It holds programs of devices that are there.
    jax.config.update('jax_enable_compilation_cache', False)
    json_path = Path(_JSON.value) if _JSON.value else None
    values = config.to_dict()
    if values.get('init_from') and not is_there(values['init_from']):
        print(
            f'init_from={values["init_from"]} is not there: planned with the model section of the '
            f'config',
            file=sys.stderr,
        )
    if _SWEEP.value:
        sweep_all(values, _TOPOLOGY.value, _SLICES.value, _LIMIT.value, json_path)
        return

    def make(topology: str, on_start: Callable[[], None]) -> AnyPlan:
        if _PROGRAM.value == 'embed':
            return make_embedding_plan(values, topology, _SLICES.value, on_start, **options)
        return make_plan(values, topology, _SLICES.value, on_start)

    plan_all(make, _TOPOLOGY.value, json_path)


def _embedding_options() -> dict[str, Any]:
    """The flags of --program embed that are given. Raises UserError where they, or --sweep, do not
    go with the program.
    """
    given = {flag.name: flag.value for flag in (_FSDP, _LENGTH, _WEIGHTS) if flag.value is not None}
    if _PROGRAM.value == 'train' and given:
        raise UserError(
            f'--{next(iter(given))} is for --program embed; a training step is as --config says'
        )
    if _PROGRAM.value == 'embed' and _SWEEP.value:
        raise UserError('--sweep tries what only training has; leave it out with --program embed')
    return given


def run() -> None:
    """The console script cpt-plan."""
    # Before JAX is imported: it must not look for a TPU here.
    os.environ |= {
        'JAX_PLATFORMS': 'cpu',
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    }
    run_program(main)
