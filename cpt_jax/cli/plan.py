r"""Estimates memory and minimum time of a training or embedding step on a TPU topology.

libtpu compiles the step on this machine; no TPU is needed.

Example:
  python launch/plan.py --config configs/cpt_l.py --topology v5p:4x4x4 --json plan.json
  python launch/plan.py --config configs/prompteol.py:opt-66b --topology v5e:4x4 --program embed \
      --fsdp 16

By default, the step is the training step of launch/train.py. Set keys of the config with
--config.section.key=value. Several topologies may be given, separated by commas. --sweep
replaces the mesh, remat policy and chunk count of the config by other values, and reports the
fastest combination that fits.

With --program embed, the step is that of launch/evaluate.py and launch/embed.py: a full batch with
one text per row, with parameters but no optimizer state. Times are lower bounds: they assume that
arithmetic, memory and network all run at their peak and overlap completely. A real run is slower.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config_flag
from cpt_jax.cli.program import run_program
from cpt_jax.runtime.errors import UserError

_read_config = define_config_flag()
_TOPOLOGY = flags.DEFINE_list(
    'topology',
    [],
    'TPU slices to plan for, such as v5p:4x4x4 or v5e:8x8,v6e:8x8. Chips: v2, v3, v4, v5e, '
    'v5p, v6e, tpu7x.',
)
_SLICES = flags.DEFINE_integer(
    'slices', 1, 'Number of slices that train together; must divide mesh.data.'
)
_JSON = flags.DEFINE_string(
    'json', '', 'File to write the results to: an object, or a list if there are several plans.'
)
_SWEEP = flags.DEFINE_boolean(
    'sweep',
    False,
    'Try meshes, remat policies and chunk counts, and report the fastest that fits.',
)
_LIMIT = flags.DEFINE_integer(
    'sweep_limit', 8, 'Maximum number of programs that --sweep compiles; most promising first.'
)
_PROGRAM = flags.DEFINE_enum(
    'program',
    'train',
    ['train', 'embed'],
    'Program to plan: train (one training step) or embed (one batch of texts).',
)
# The next three are only for --program embed; None means that the flag is not given.
_FSDP = flags.DEFINE_integer(
    'fsdp',
    None,
    'With --program embed: number of devices that the parameters are sharded over. Default: 1.',
    lower_bound=1,
)
_LENGTH = flags.DEFINE_integer(
    'length',
    None,
    'With --program embed: tokens per text. Default: the maximum length of the config.',
    lower_bound=1,
)
_WEIGHTS = flags.DEFINE_enum(
    'weights',
    None,
    ['bfloat16', 'float32'],
    'With --program embed: dtype of the parameters. bfloat16 is that of most published language '
    'models and the default of configs with a prompt.template; float32 is that of checkpoints and '
    'the default of other configs. With LoRA, lora.base determines it.',
)
flags.declare_key_flag('config')


def main() -> None:
    config = _read_config().config
    if not _TOPOLOGY.value:
        raise UserError('--topology is missing: give a TPU slice such as v5p:4x4x4')
    options = _read_embedding_options()
    import jax

    from cpt_jax.origin.resolve import reference_exists
    from cpt_jax.plan.embedding import AnyPlan, make_embedding_plan
    from cpt_jax.plan.planning import make_plan
    from cpt_jax.plan.report import plan_all_topologies, sweep_all_topologies

    # The compilation cache only works for devices that exist on this machine.
    jax.config.update('jax_enable_compilation_cache', False)
    json_path = Path(_JSON.value) if _JSON.value else None
    values = config.to_dict()
    if values.get('init_from') and not reference_exists(values['init_from']):
        print(
            f'init_from={values["init_from"]} does not exist here: planning with the model section '
            f'of the config',
            file=sys.stderr,
        )
    if _SWEEP.value:
        sweep_all_topologies(values, _TOPOLOGY.value, _SLICES.value, _LIMIT.value, json_path)
        return

    def make(topology: str, on_start: Callable[[], None]) -> AnyPlan:
        if _PROGRAM.value == 'embed':
            return make_embedding_plan(values, topology, _SLICES.value, on_start, **options)
        return make_plan(values, topology, _SLICES.value, on_start)

    plan_all_topologies(make, _TOPOLOGY.value, json_path)


def _read_embedding_options() -> dict[str, Any]:
    """Returns the given flags that are only for --program embed.

    Raises:
      UserError: one of them is given for a training step, or --sweep for --program embed.
    """
    given = {flag.name: flag.value for flag in (_FSDP, _LENGTH, _WEIGHTS) if flag.value is not None}
    if _PROGRAM.value == 'train' and given:
        raise UserError(
            f'--{next(iter(given))} is for --program embed; a training step uses the keys of '
            f'--config'
        )
    if _PROGRAM.value == 'embed' and _SWEEP.value:
        raise UserError(
            '--sweep varies options that only training has: leave it out with --program embed'
        )
    return given


def run() -> None:
    """Runs the console script cpt-plan."""
    # Set before JAX is imported, so that it does not look for a TPU on this machine.
    os.environ |= {
        'JAX_PLATFORMS': 'cpu',
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    }
    run_program(main)
