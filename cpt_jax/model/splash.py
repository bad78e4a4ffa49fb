"""JAX's TPU attention kernel (splash attention), with a forward pass that a remat can repeat.

The kernel's own derivative rule writes the log-sum-exp of each query over 128 equal lanes in the
forward pass, four times the bytes of its result at head width 64. Under `jax.checkpoint` these are
thrown away and computed again, because a checkpoint cannot cut a kernel in two.
`optimize_remat` of jax.custom_vjp can: the forward pass then runs the kernel without log-sum-exp.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as mask_info,
)

# (q_HxSxK, k_GxSxK, v_GxSxK, segments_S) -> [H, S, K].
SplashAttention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def make_splash_attention(
    mask: splash_mask.Mask, heads: int, sizes: splash_kernel.BlockSizes, interpret: bool
) -> SplashAttention:
    """Returns the attention of one row, with the kernel's own forward and backward passes.

    Args:
      mask: which keys a query may attend to, in addition to those of its own segment.
      heads: number of query heads.
      sizes: block sizes of the kernel.
      interpret: whether to run the kernel step by step on any device, for tests.
    """
    masks = splash_mask.MultiHeadMask([mask] * heads)
    # NumPy arrays: where each kernel finds the blocks of the mask that are not empty.
    forward_blocks, mask_function = mask_info.process_mask(masks, (sizes.block_q, sizes.block_kv))
    dq_blocks, _ = mask_info.process_mask(masks, (sizes.block_q_dq, sizes.block_kv_dq))
    dkv_blocks, _ = mask_info.process_mask_dkv(masks, (sizes.block_q_dkv, sizes.block_kv_dkv))
    options: dict[str, Any] = {
        'mask_value': splash_kernel.DEFAULT_MASK_VALUE,
        'is_mqa': False,
        'block_sizes': sizes,
        'residual_checkpoint_name': None,
        'mask_function': mask_function,
        'attn_logits_soft_cap': None,
        'interpret': interpret,
    }

    def run_forward(q_HxSxK, k_GxSxK, v_GxSxK, segments_S, save_residuals):
        segments = splash_kernel.SegmentIds(segments_S, segments_S)
        return splash_kernel._splash_attention_forward(
            _to_arrays(forward_blocks),
            q_HxSxK,
            k_GxSxK,
            v_GxSxK,
            segments,
            None,
            save_residuals=save_residuals,
            **options,
        )

    @jax.custom_vjp
    def attend(q_HxSxK, k_GxSxK, v_GxSxK, segments_S):
        return run_forward(q_HxSxK, k_GxSxK, v_GxSxK, segments_S, save_residuals=False)

    def attend_and_save(q_HxSxK, k_GxSxK, v_GxSxK, segments_S):
        inputs = (q_HxSxK, k_GxSxK, v_GxSxK, segments_S)
        out_HxSxK, (log_sums_HxS,) = run_forward(*inputs, save_residuals=True)
        return out_HxSxK, (*inputs, out_HxSxK, log_sums_HxS)

    def run_backward(saved, gradient_HxSxK):
        q_HxSxK, k_GxSxK, v_GxSxK, segments_S, out_HxSxK, log_sums_HxS = saved
        segments = splash_kernel.SegmentIds(segments_S, segments_S)
        residuals = (
            q_HxSxK,
            k_GxSxK,
            v_GxSxK,
            segments,
            None,  # sinks
            out_HxSxK,
            log_sums_HxS,
            _to_arrays(dq_blocks),
            _to_arrays(dkv_blocks),
        )
        gradients = splash_kernel._splash_attention_bwd(
            save_residuals=False, res=residuals, do=gradient_HxSxK, **options
        )
        return *gradients[3:6], None  # the kernel's first three arguments are blocks

    attend.defvjp(attend_and_save, run_backward, optimize_remat=True)
    return attend


def _to_arrays(blocks: mask_info.MaskInfo) -> mask_info.MaskInfo:
    """Returns the blocks as constants of the program that is being traced."""
    return jax.tree.map(jnp.array, blocks)
