"""False negatives: candidates so near to an anchor that they are likely positives of it.

A candidate whose cosine with the anchor exceeds that of the anchor's own pair by more than a margin
is left out of the softmax. The cosines are those of the model itself, as in Qwen3-Embedding (arXiv
2506.05176), or of a guide, as in GISTEmbed (arXiv 2402.16829).
"""

import jax
import jax.numpy as jnp

from cpt_jax.loss.candidates import NegativeRules


def limit_negatives(
    e_BxTxD: jax.Array, margin: float, is_relative: bool, guide_BxTxW: jax.Array | None = None
) -> NegativeRules:
    """Returns the rule that candidates above a limit are no negatives. It has no gradient.

    Args:
      e_BxTxD: unit vectors of x, y and hard negatives.
      margin: what is added to the cosine of a pair to get its limit. With a negative margin,
        candidates that are less near than the partner are left out too.
      is_relative: whether the margin is a fraction of the absolute value of that cosine.
      guide_BxTxW: unit vectors of the guide; None: the model's own.
    """
    vectors = e_BxTxD if guide_BxTxW is None else guide_BxTxW
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    own_B = jnp.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
    limit_B = own_B + margin * (jnp.abs(own_B) if is_relative else 1)
    return NegativeRules(limit_B, guide_BxTxW)
