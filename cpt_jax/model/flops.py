"""How much arithmetic a training step needs: what a utilisation (MFU) is measured against."""

from cpt_jax.model.shape import Shape


def step_flops(shape: Shape, tokens: int, row_length: int, pairs: int, texts: int) -> int:
    """Floating-point operations of the matrix products of one step: forward, and twice that backward.

    Computed here is what the program needs whatever the hardware: recomputation (remat, chunked encoding) does not count, and neither
    does element-wise work. Rows count as they are computed, padding included, and attention counts every product of a row with itself,
    not the half that a causal mask leaves and not only those within a text: a kernel that skips the others may do better than this.

    Args:
      shape: of the encoder. The last layer's output projection and feed-forward part run at the texts' ends alone.
      tokens: columns of all rows of a step.
      row_length: columns of a row.
      pairs: pairs of the whole batch.
      texts: texts of a pair: x, y and hard negatives.
    """
    ends = pairs * texts
    inputs, output, feed_forward = _layer_parameters(shape)
    mixing = 2 * tokens * row_length * shape.heads * shape.head_width  # queries with keys, weights with values
    layers = shape.layers * (tokens * inputs + mixing) + ((shape.layers - 1) * tokens + ends) * (output + feed_forward)
    similarities = pairs * (pairs * (texts - 1)) * shape.width
    return 3 * 2 * (layers + similarities)


def _layer_parameters(shape: Shape) -> tuple[int, int, int]:
    """Of one layer's matrices: query, key and value; output; feed-forward."""
    inputs = shape.width * shape.head_width * (shape.heads + 2 * shape.kv_heads)
    output = shape.heads * shape.head_width * shape.width
    return inputs, output, shape.width * shape.hidden * (3 if shape.activation == 'swiglu' else 2)
