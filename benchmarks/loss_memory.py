r"""Measures memory and arithmetic of the loss, compiled ahead of time for a TPU slice.

Our forms are compared with CLIP's. Only value and gradient of the loss are compiled, without the
encoder.

Example:
  python benchmarks/loss_memory.py --topology v5e:4x4 --batch 65536 --width 2048 \
      --json loss_memory.json

CLIP's form (open_clip's with local loss and gathered gradients) gathers both sides and computes two
products. `arithmetic` is relative to one product of all x with all y and its two gradients. `ratio`
in the JSON is the memory of CLIP's form over that of the dense form, the default.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from cpt_jax.cli.program import run_program


def main() -> None:
    rows = measure(_TOPOLOGY.value, _BATCH.value, _WIDTH.value, _DTYPE.value)
    print(f'{"form":<14}{"temporary memory a chip":>26}{"arithmetic":>12}')
    for name, row in rows.items():
        print(f'{name:<14}{row["temporary_bytes"] / 2**20:>22,.1f} MiB{row["arithmetic"]:>10.2f} x')
    settings = {
        'topology': _TOPOLOGY.value,
        'batch': _BATCH.value,
        'width': _WIDTH.value,
        'dtype': _DTYPE.value,
    }
    ratio = rows['CLIP']['temporary_bytes'] / rows['dense']['temporary_bytes']
    if _JSON.value:
        Path(_JSON.value).write_text(
            json.dumps({'ratio': ratio, 'settings': settings, 'forms': rows}, indent=2) + '\n'
        )


def measure(
    topology: str, batch: int, width: int, dtype: str, chunks: Sequence[int] = (4, 8, 16)
) -> dict[str, dict[str, float]]:
    """Returns `temporary_bytes` (of a chip) and `arithmetic` (relative to one product of all x with
    all y and its two gradients) of each form.

    Args:
      topology: a TPU slice, such as 'v5e:4x4'.
      batch: pairs in the batch.
      width: dimension of the vectors.
      dtype: dtype of the vectors.
      chunks: chunk counts of the chunked form.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from cpt_jax.loss.infonce import InfoNCE
    from cpt_jax.plan.hlo.flops import count_flops
    from cpt_jax.plan.hlo.program import parse_program
    from cpt_jax.plan.topology import get_topology_devices
    from cpt_jax.runtime.mesh import AXES, make_mesh

    mesh = make_mesh(devices=get_topology_devices(topology, 1))

    def make_array(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    inputs = (
        make_array((batch, 2, width), dtype, P(AXES)),
        make_array((batch, 2, 2), jnp.int32, P(AXES)),
        make_array((), jnp.float32, P()),
    )
    forms = {'CLIP': compute_clip_loss, 'dense': InfoNCE()} | {
        f'chunked, {k}': InfoNCE('chunked', k) for k in chunks
    }
    rows = {}
    for name, form in forms.items():
        with jax.set_mesh(mesh):
            compiled = (
                jax.jit(jax.value_and_grad(form, argnums=(0, 2), has_aux=True))
                .lower(*inputs)
                .compile()
            )
        flops = count_flops(parse_program(compiled.as_text())).total * mesh.size
        rows[name] = {
            'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
            'arithmetic': flops / (3 * 2 * batch * batch * width),
        }
    return rows


def compute_clip_loss(e_BxTxD, ids_BxTxZ, log_scale):
    """Returns CLIP's loss, and a value in place of metrics; it has no masks.

    Each device compares its x with all y, and its y with all x.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    from cpt_jax.runtime.mesh import AXES

    def compute_one_direction(a_bxD, b_bxD, scale):
        all_BxD = jax.lax.all_gather(b_bxD, AXES, tiled=True)
        logits_bxB = scale * jnp.einsum(
            'bd,cd->bc', a_bxD, all_BxD, preferred_element_type=jnp.float32
        )
        own = jax.lax.axis_index(AXES) * len(a_bxD) + jnp.arange(len(a_bxD))
        positive_b = jnp.take_along_axis(logits_bxB, own[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits_bxB, 1) - positive_b)

    @jax.shard_map(in_specs=(P(AXES), P()), out_specs=P())
    def compute_sharded(e_bxTxD, scale):
        x_bxD, y_bxD = e_bxTxD[:, 0], e_bxTxD[:, 1]
        x_to_y = compute_one_direction(x_bxD, y_bxD, scale)
        y_to_x = compute_one_direction(y_bxD, x_bxD, scale)
        return jax.lax.pmean((x_to_y + y_to_x) / 2, AXES)

    return compute_sharded(e_BxTxD, jnp.exp(log_scale)), ids_BxTxZ.sum()


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _TOPOLOGY = flags.DEFINE_string('topology', 'v5e:4x4', 'A TPU slice.')
    _BATCH = flags.DEFINE_integer('batch', 65_536, 'Pairs in the batch.')
    _WIDTH = flags.DEFINE_integer('width', 2048, 'Dimension of the vectors.')
    _DTYPE = flags.DEFINE_enum(
        'dtype', 'bfloat16', ['bfloat16', 'float32'], 'Dtype of the vectors.'
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    os.environ |= {
        'JAX_PLATFORMS': 'cpu',
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    }
    run_program(main)
