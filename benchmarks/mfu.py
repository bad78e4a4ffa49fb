r"""How much of the machine a training step uses: the useful arithmetic of real, packed pairs over
the most that the devices could do.

Example:
  python benchmarks/mfu.py --config configs/cpt_s.py --config.train.batch_pairs=768 \
      --json mfu.json

The most is the makers' figure for bfloat16 where it is known (cpt_jax/runtime/hardware.py: MFU as
papers give it); for a CPU, and for other devices, it is what one large matrix product reaches in
this same run, between the steps. Useful is what the model needs whatever the program: tokens of
texts and not padding, attention of a text to itself, nothing that is computed twice. Without
--config (and any --config.section.key) it is configs/cpt_s.py on an accelerator and
configs/quickstart.py on a CPU. `ratio` in the JSON is the share.
"""

import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config
from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.runs.config_file import load_config

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    name, config = _config()
    use_compilation_cache()
    found = measure(config, _SOURCE.value, _STEPS.value) | {'config': name}
    print(
        f'{name} on {found["devices"]} x {found["device"]}, {found["parameters"]:,} parameters, '
        f'compute in {found["dtype"]}'
    )
    print(
        f'step              {found["step_seconds"]:.4g} s, compiled in '
        f'{found["compile_seconds"]:.0f} s'
    )
    print(
        f'                  {found["pairs_per_second"]:,.0f} pairs/s, '
        f'{found["tokens_per_second"]:,.0f} tokens/s'
    )
    print(f'useful tokens     {found["useful_share"]:.1%} of the columns computed')
    print(
        f'arithmetic        {found["flops_per_step"] / 1e9:,.0f} GFLOP a step, '
        f'{found["flops_per_second"] / 1e12:,.3f} TFLOP/s'
    )
    print(f'the most          {found["peak"] / 1e12:,.3f} TFLOP/s ({found["peak_is"]})')
    print(f'share             {found["ratio"]:.1%}')
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def measure(config: Mapping[str, Any], source: str, steps: int) -> dict[str, Any]:
    """The figures of a config's step on the first real batches.

    Args:
      config: the sections of configs/base.py.
      source: see benchmarks/training.py.
      steps: timed, each on a batch of its own.
    """
    import jax

    from cpt_jax.runtime.hardware import chip_of
    from training import TrainingStep, run_of
    from turns import in_turn

    run = run_of(config, source)
    step = TrainingStep(run, steps)
    device, cpu = jax.devices()[0], jax.default_backend() == 'cpu'
    chip = chip_of(device.device_kind)
    side = 2048 if cpu else 8192  # of the matrices: large enough for the device
    sides = (
        {'step': step}
        if chip
        else {'step': step, 'product': matrix_product(side, run.encoder_config.compute_dtype)}
    )
    seconds = {name: statistics.median(values) for name, values in in_turn(sides, steps).items()}
    if chip:
        peak = run.mesh.size * chip.flops / chip.devices
        peak_is = f'{chip.name}, bfloat16, by its maker'
    else:  # a product on a CPU takes all cores, however many devices are simulated
        peak = (1 if cpu else run.mesh.size) * 2 * side**3 / seconds['product']
        peak_is = (
            f'a product of two {side} x {side} matrices, {run.encoder_config.compute_dtype}, in '
            f'this run'
        )
    tokens, pairs, flops = (
        statistics.mean(values)
        for values in zip(*(work_of(run, batch) for batch in step.batches), strict=True)
    )
    return {
        'ratio': flops / seconds['step'] / peak,
        'device': f'{device.device_kind} of {os.cpu_count()} cores' if cpu else device.device_kind,
        'devices': run.mesh.size,
        'dtype': str(run.encoder_config.compute_dtype),
        'parameters': step.parameters,
        'compile_seconds': step.compile_seconds,
        'step_seconds': seconds['step'],
        'pairs_per_second': pairs / seconds['step'],
        'tokens_per_second': tokens / seconds['step'],
        'useful_share': tokens / statistics.mean(batch.tokens_CxRxS.size for batch in step.batches),
        'flops_per_step': flops,
        'flops_per_second': flops / seconds['step'],
        'peak': peak,
        'peak_is': peak_is,
    }


def work_of(run, batch) -> tuple[int, int, float]:
    """(tokens, pairs, model FLOPs) of a batch. Attention counts in full within a text, though a
    causal mask leaves half, as is usual.
    """
    import numpy as np

    from cpt_jax.model.flops import step_flops

    layout = run.layout
    # Each numbers its texts from 1.
    groups = np.asarray(batch.segments_CxRxS).reshape(layout.chunks * layout.parts, -1)
    lengths = np.concatenate([np.bincount(segments)[1:] for segments in groups])
    tokens, pairs = int(lengths.sum()), int(np.sum(np.asarray(batch.ids_CxBxT)[..., 0] > 0))
    seen = float(np.sum(lengths**2)) / tokens  # by a token, on average
    return tokens, pairs, step_flops(run.encoder_config, tokens, seen, pairs, layout.texts)


def _config() -> tuple[str, dict[str, Any]]:
    """Of --config, or the one that suits the device."""
    if flags.FLAGS['config'].present:
        name, config = _CONFIG()
        return name, config.to_dict()
    import jax

    name = 'quickstart' if jax.default_backend() == 'cpu' else 'cpt_s'
    return name, load_config(ROOT / f'configs/{name}.py')


def matrix_product(side: int, dtype) -> Callable[[], object]:
    """The product of two square matrices, ready to be called."""
    import jax

    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    product = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    return lambda: jax.block_until_ready(product(a, b))


if __name__ == '__main__':
    # Here, as the tests import several of these programs.
    _CONFIG = define_config()
    _SOURCE = flags.DEFINE_enum(
        'source',
        'python_source',
        ['config', 'python_source'],
        "The Python installation, or the config's own.",
    )
    _STEPS = flags.DEFINE_integer('steps', 10, 'Steps that are timed.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
    flags.declare_key_flag('config')
    run_program(main)
