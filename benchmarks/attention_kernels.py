"""Counts the work of JAX's TPU attention kernels for heads of dimension 64 and 128.

Each kernel is compiled for one v5e chip, without a TPU, and libtpu writes its machine code. A
matrix unit multiplies rows of 128 numbers with a matrix of 128 x 128. The first table has, for one
head and one block of 512 queries and 512 keys: instruction bundles (at most one starts per cycle),
rows that pass through the matrix units, and the share of the units' multiplications that belong to
the model. The second table has the attention of a layer, with its projections, in the kernel's two
orders of axes: forward, repeated forward and backward, for 16 rows of 512 columns and 16 heads.

Example:
  python benchmarks/attention_kernels.py
"""

import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {'JAX_PLATFORMS': 'cpu'}

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from cpt_jax.cli.program import run_program
from cpt_jax.model import attention
from cpt_jax.plan.hlo.program import parse_program
from cpt_jax.plan.hlo.roofline import sum_seconds, time_instructions
from cpt_jax.plan.hlo.walk import iterate_executed
from cpt_jax.plan.topology import get_topology_devices
from cpt_jax.runtime.hardware import CHIPS
from cpt_jax.runtime.mesh import BATCH, make_mesh

LENGTH = 512  # of a row, and of a block
UNIT = 128  # rows and columns of a matrix unit of v4, v5e and v5p
# A matrix instruction takes 8 rows of float32 or 16 of bfloat16.
_MATRIX_INSTRUCTION = re.compile(r'vmatmul[\w.]*\.(f32|bf16)')
_ROWS = {'f32': 8, 'bf16': 16}
# Kernel -> matrix products of queries times keys.
PRODUCTS = {
    'flash_attention': 2,
    'splash_mha_fwd': 2,
    'splash_mha_dq': 3,
    'splash_mha_dkv': 4,
    'splash_mha_dkv, fused with dq': 5,
}


def make_flash(heads: int) -> Callable:
    """Returns the forward pass of JAX's flash attention."""
    del heads
    sizes = flash_attention.BlockSizes(
        block_q=LENGTH, block_k_major=LENGTH, block_k=LENGTH, block_b=1
    )

    def attend(q_HxSxK, k_HxSxK, v_HxSxK, segments_S):
        segments = flash_attention.SegmentIds(segments_S[None], segments_S[None])
        inputs = (q_HxSxK[None], k_HxSxK[None], v_HxSxK[None])
        return flash_attention.flash_attention(
            *inputs, segment_ids=segments, causal=True, block_sizes=sizes
        )

    return attend


def make_splash(heads: int, is_fused: bool = False) -> Callable:
    """Returns the forward and backward pass of JAX's splash attention."""
    keys = ['q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute']
    keys += [] if is_fused else ['q_dq', 'kv_dq']
    sizes = splash.BlockSizes(
        **{f'block_{key}': LENGTH for key in keys}, use_fused_bwd_kernel=is_fused
    )
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((LENGTH, LENGTH))] * heads)
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes)

    def attend(q_HxSxK, k_HxSxK, v_HxSxK, segments_S):
        segments = splash.SegmentIds(segments_S, segments_S)
        out_HxSxK, back = jax.vjp(
            lambda *qkv: kernel(*qkv, segment_ids=segments), q_HxSxK, k_HxSxK, v_HxSxK
        )
        return back(out_HxSxK)

    return attend


def measure_kernels(
    make_attend: Callable, heads: int, width: int, code: Path
) -> Iterator[dict[str, Any]]:
    """Compiles a function; yields the work of each of its kernels for one head.

    Args:
      make_attend: number of heads -> function of queries, keys, values and segments.
      heads: number of heads.
      width: dimension of a head.
      code: folder into which libtpu writes machine code.
    """
    for file in code.iterdir():
        file.unlink()
    sharding = jax.sharding.SingleDeviceSharding(get_topology_devices('v5e:1x1', 1)[0])
    array = jax.ShapeDtypeStruct((heads, LENGTH, width), jnp.bfloat16, sharding=sharding)
    segments = jax.ShapeDtypeStruct((LENGTH,), jnp.int32, sharding=sharding)
    jax.jit(make_attend(heads)).lower(array, array, array, segments).compile()
    for file in sorted(code.glob('*-final_bundles.txt')):
        name = re.match(r'\d+-(flash_attention|splash_mha_[a-z]+)', file.name)
        if not name or 'schedule-analysis' in file.name:
            continue
        text = file.read_text()
        rows = sum(_ROWS[dtype] for dtype in _MATRIX_INSTRUCTION.findall(text))
        yield {
            'kernel': name[1],
            'heads': heads,
            'width': width,
            'bundles': len(re.findall(r'^ *(?:0x[\da-f]+|0) .*?:', text, re.MULTILINE)),
            'matrix_rows': rows,
        }


def compute_used_share(row: dict[str, Any]) -> float:
    """Returns the share of the matrix units' multiplications that belong to the model."""
    return PRODUCTS[row['kernel']] * LENGTH**2 * row['width'] / (row['matrix_rows'] * UNIT**2)


def measure_layer(layout: splash.QKVLayout) -> dict[str, Any]:
    """Compiles the attention of a layer, forward and backward; returns its memory and times.

    Returns:
      `peak_bytes`; `roofline_seconds`, the sum over instructions of the larger of arithmetic and
      memory time; and `estimated_cycles`, libtpu's own estimate of all but the kernels.
    """
    rows, heads, width = 16, 16, 64
    mesh = make_mesh(devices=get_topology_devices('v5e:1x1', 1))

    def array(shape, *spec, dtype=jnp.bfloat16):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def run_layer(x_RxSxD, weights, out_HxKxD, segments_RxS):
        qkv = [jnp.einsum('rsd,dhk->rshk', x_RxSxD, weight) for weight in weights]
        mixed_RxSxHxK = attention.make_attend(segments_RxS, True, 'splash')(*qkv)
        return x_RxSxD + jnp.einsum(
            'rshk,hkd->rsd', mixed_RxSxHxK, out_HxKxD, out_sharding=jax.P(BATCH)
        )

    def differentiate(x_RxSxD, weights, out_HxKxD, segments_RxS):
        layer = jax.checkpoint(lambda *inputs: run_layer(*inputs, segments_RxS))
        out_RxSxD, back = jax.vjp(layer, x_RxSxD, weights, out_HxKxD)
        return back(out_RxSxD)

    sizes = functools.partial(splash.BlockSizes, q_layout=layout, k_layout=layout, v_layout=layout)
    with jax.set_mesh(mesh), mock.patch.object(splash, 'BlockSizes', sizes):
        compiled = (
            jax.jit(differentiate)
            .lower(
                array((rows, LENGTH, heads * width), BATCH),
                [array((heads * width, heads, width), None, 'tensor')] * 3,
                array((heads, width, heads * width), 'tensor'),
                array((rows, LENGTH), BATCH, dtype=jnp.int32),
            )
            .compile()
        )
    module = parse_program(compiled.as_text() or '')
    chip = CHIPS['v5e']
    estimates = (
        (executed.times, re.search(r'"estimated_cycles":"(\d+)"', executed.instruction.attributes))
        for executed in iterate_executed(module)
        if not executed.fused
    )
    return {
        'layout': layout.name,
        'peak_bytes': compiled.memory_analysis().peak_memory_in_bytes,
        'roofline_seconds': sum_seconds(time_instructions(module, chip.flops, chip.hbm_rate)),
        'estimated_cycles': sum(times * int(found[1]) for times, found in estimates if found),
    }


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory() as code:
        # libtpu reads this when it is loaded.
        os.environ['LIBTPU_INIT_ARGS'] = f'--xla_jf_dump_to={code} --xla_jf_dump_llo_text=true'
        print('| kernel | heads | bundles | rows through the matrix units | used |')
        print('| --- | --- | --- | --- | --- |')
        for row in _iterate_kernels(Path(code)):
            row['used'] = compute_used_share(row)
            print(
                f'| `{row["kernel"]}` | {row["heads"]} of {row["width"]} | {row["bundles"]:,} | '
                f'{row["matrix_rows"]:,} | {row["used"]:.0%} |',
                flush=True,
            )
            found.append(row)
        print('\n| order of axes | peak memory | roofline | estimated cycles |')
        print('| --- | --- | --- | --- |')
        for layout in (splash.QKVLayout.HEAD_DIM_MINOR, splash.QKVLayout.SEQ_MINOR):
            row = measure_layer(layout)
            print(
                f'| `{row["layout"]}` | {row["peak_bytes"] / 2**20:.0f} MiB | '
                f'{row["roofline_seconds"] * 1e3:.2f} ms | {row["estimated_cycles"]:,} |',
                flush=True,
            )
            found.append(row)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def _iterate_kernels(code: Path) -> Iterator[dict[str, Any]]:
    for heads, width in ((16, 64), (8, 128)):
        yield from measure_kernels(make_flash, heads, width, code)
        yield from measure_kernels(make_splash, heads, width, code)
        fused = functools.partial(make_splash, is_fused=True)
        for row in measure_kernels(fused, heads, width, code):
            if row['kernel'] == 'splash_mha_dkv':
                yield row | {'kernel': 'splash_mha_dkv, fused with dq'}


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _JSON = flags.DEFINE_string('json', '', 'Also write the numbers to this file.')
    run_program(main)
