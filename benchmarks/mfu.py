r"""Measures model FLOPs utilization (MFU) of a training step on real, packed pairs.

Example:
  python benchmarks/mfu.py --config configs/cpt_s.py --config.train.batch_pairs=768 \
      --json mfu.json

The peak is the maker's number for bfloat16 if it is known (cpt_jax/runtime/hardware.py), as in
papers. For CPUs and other devices it is the rate of one large matrix product, measured in the same
run, in turn with the steps. Model FLOPs exclude padding, attention between different texts, and
recomputation. Without --config the config is configs/cpt_s.py on an accelerator and
configs/quickstart.py on a CPU. `ratio` in the JSON is the MFU.
"""

import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config_flag
from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.runs.config_file import load_config

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    name, config = _load_config()
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
    print(f'tokens            {found["useful_share"]:.1%} of the computed columns')
    print(
        f'model FLOPs       {found["flops_per_step"] / 1e9:,.0f} GFLOP a step, '
        f'{found["flops_per_second"] / 1e12:,.3f} TFLOP/s'
    )
    print(f'peak              {found["peak"] / 1e12:,.3f} TFLOP/s ({found["peak_is"]})')
    print(f'MFU               {found["ratio"]:.1%}')
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def measure(config: Mapping[str, Any], source: str, steps: int) -> dict[str, Any]:
    """Returns the results of a config's step on the first real batches.

    Args:
      config: the sections of configs/base.py.
      source: see benchmarks/training.py.
      steps: timed steps, each on its own batch.
    """
    import jax

    from cpt_jax.runtime.hardware import find_chip
    from training import TrainingStep, make_run
    from turns import time_in_turn

    run = make_run(config, source)
    step = TrainingStep(run, steps)
    device = jax.devices()[0]
    is_cpu = jax.default_backend() == 'cpu'
    chip = find_chip(device.device_kind)
    dtype = run.encoder_config.compute_dtype
    matrix_size = 2048 if is_cpu else 8192  # large enough to reach the peak rate
    functions: dict[str, Callable[[], object]] = {'step': step}
    if not chip:
        functions['product'] = compile_matrix_product(matrix_size, dtype)
    times = time_in_turn(functions, steps)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    if chip:
        peak = run.mesh.size * chip.flops / chip.devices
        peak_is = f'{chip.name}, bfloat16, from its maker'
    else:
        # On a CPU, a product uses all cores, whatever the number of simulated devices.
        devices = 1 if is_cpu else run.mesh.size
        peak = devices * 2 * matrix_size**3 / seconds['product']
        peak_is = f'a product of two {matrix_size} x {matrix_size} matrices, {dtype}, in this run'
    work = [count_work(run, batch) for batch in step.batches]
    tokens, pairs, flops = (statistics.mean(values) for values in zip(*work, strict=True))
    device_name = device.device_kind
    if is_cpu:
        device_name += f' of {os.cpu_count()} cores'
    return {
        'ratio': flops / seconds['step'] / peak,
        'device': device_name,
        'devices': run.mesh.size,
        'dtype': str(dtype),
        'parameters': step.parameters,
        'compile_seconds': step.compile_seconds,
        'step_seconds': seconds['step'],
        'pairs_per_second': pairs / seconds['step'],
        'tokens_per_second': tokens / seconds['step'],
        'useful_share': tokens / statistics.mean(batch.tokens_JxRxS.size for batch in step.batches),
        'flops_per_step': flops,
        'flops_per_second': flops / seconds['step'],
        'peak': peak,
        'peak_is': peak_is,
    }


def count_work(run, batch) -> tuple[int, int, float]:
    """Returns the numbers of tokens, pairs and model FLOPs of a batch.

    By the usual convention, attention counts in full within a text, also with a causal mask.
    """
    import numpy as np

    from cpt_jax.model.flops import count_step_flops
    from cpt_jax.training.utilization import count_tokens

    tokens, attended = count_tokens(np.asarray(batch.segments_JxRxS))
    pairs = int(np.sum(np.asarray(batch.ids_JxBxTxZ)[..., 0, 0] > 0))
    return (
        tokens,
        pairs,
        count_step_flops(run.encoder_config, tokens, attended, pairs, run.layout.texts),
    )


def _load_config() -> tuple[str, dict[str, Any]]:
    """Returns name and sections of --config, or of the default for the device."""
    if flags.FLAGS['config'].present:
        name, config, _ = _CONFIG()
        return name, config.to_dict()
    import jax

    name = 'quickstart' if jax.default_backend() == 'cpu' else 'cpt_s'
    return name, load_config(ROOT / f'configs/{name}.py')


def compile_matrix_product(size: int, dtype) -> Callable[[], object]:
    """Returns a function that multiplies two random square matrices and waits for the result."""
    import jax

    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    return lambda: jax.block_until_ready(product(a, b))


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _CONFIG = define_config_flag()
    _SOURCE = flags.DEFINE_enum(
        'source',
        'python_source',
        ['config', 'python_source'],
        'Sources: the Python installation, or those of the config.',
    )
    _STEPS = flags.DEFINE_integer('steps', 10, 'Timed steps.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    flags.declare_key_flag('config')
    run_program(main)
