"""Measures the time of the loss, value and gradient, on the devices of this machine.

Our forms are compared with CLIP's, in turn in one process.

Example:
  python benchmarks/loss_time.py --devices 8 --batch 4096 --width 384 --json loss_time.json

CLIP's form (open_clip's with local loss and gathered gradients, `compute_clip_loss` in
loss_memory.py) has no masks and no metrics; ours have both. `ratio` in the JSON is the median of
CLIP's form over that of the dense form, the default. loss_memory.py measures memory and arithmetic
on TPUs, without a TPU.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from loss_memory import compute_clip_loss

from cpt_jax.cli.program import run_program
from cpt_jax.runtime.errors import UserError
from turns import time_in_turn


def main() -> None:
    import jax

    jax.config.update('jax_num_cpu_devices', _DEVICES.value)
    seconds = measure(_BATCH.value, _WIDTH.value, _DTYPE.value, _DEVICES.value, _REPEATS.value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    device = jax.devices()[0].device_kind
    print(
        f'{_BATCH.value:,} pairs of dimension {_WIDTH.value:,}, {_DTYPE.value}, on '
        f'{_DEVICES.value} x {device}'
    )
    print(f'{"form":<14}{"median":>12}{"fastest":>12}{"slowest":>12}{"CLIP / form":>14}')
    for name, values in seconds.items():
        cells = ''.join(
            f'{value * 1e3:>9,.1f} ms' for value in (medians[name], min(values), max(values))
        )
        print(f'{name:<14}{cells}{medians["CLIP"] / medians[name]:>12.2f} x')
    if _JSON.value:
        settings = {
            'batch': _BATCH.value,
            'width': _WIDTH.value,
            'dtype': _DTYPE.value,
            'devices': _DEVICES.value,
            'device': device,
        }
        rows = {
            name: {'seconds': values, 'ratio': medians['CLIP'] / medians[name]}
            for name, values in seconds.items()
        }
        results = {'ratio': rows['dense']['ratio'], 'settings': settings, 'forms': rows}
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def measure(
    batch: int,
    width: int,
    dtype: str,
    devices: int,
    repeats: int,
    chunks: Sequence[int] = (4, 8, 16),
) -> dict[str, list[float]]:
    """Returns the seconds of each call, by form.

    Args:
      batch: pairs in the batch.
      width: dimension of the vectors.
      dtype: dtype of the vectors.
      devices: devices to use.
      repeats: timed calls of each form.
      chunks: chunk counts of the chunked form.

    Raises:
      UserError: the machine has fewer devices, or their number does not divide the batch.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from cpt_jax.loss.infonce import InfoNCE
    from cpt_jax.runtime.mesh import AXES, make_mesh

    if devices > jax.device_count():
        raise UserError(f'--devices={devices}: this machine has {jax.device_count()}')
    if batch % devices:
        raise UserError(f'--devices={devices} must divide --batch={batch}')
    mesh = make_mesh(devices=jax.devices()[:devices])
    e_BxTxD = np.random.default_rng(0).normal(size=(batch, 2, width))
    e_BxTxD /= np.linalg.norm(e_BxTxD, axis=-1, keepdims=True)

    def put(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))

    inputs = (
        put(e_BxTxD.astype(jnp.dtype(dtype)), P(AXES)),
        put(1 + np.arange(4 * batch, dtype=np.int32).reshape(-1, 2, 2), P(AXES)),
    )
    log_scale = put(np.float32(3), P())

    def compile_form(form):
        with jax.set_mesh(mesh):
            program = (
                jax.jit(jax.value_and_grad(form, argnums=(0, 2), has_aux=True))
                .lower(*inputs, log_scale)
                .compile()
            )
        return lambda: jax.block_until_ready(program(*inputs, log_scale))

    forms = {'CLIP': compute_clip_loss, 'dense': InfoNCE()} | {
        f'chunked, {k}': InfoNCE('chunked', k) for k in chunks
    }
    return time_in_turn({name: compile_form(form) for name, form in forms.items()}, repeats)


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _BATCH = flags.DEFINE_integer('batch', 4096, 'Pairs in the batch.')
    _WIDTH = flags.DEFINE_integer('width', 384, 'Dimension of the vectors.')
    _DTYPE = flags.DEFINE_enum('dtype', 'float32', ['bfloat16', 'float32'], 'Dtype of the vectors.')
    _DEVICES = flags.DEFINE_integer(
        'devices', 1, 'Devices to use; simulated on a CPU.', lower_bound=1
    )
    _REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls of each form.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    run_program(main)
