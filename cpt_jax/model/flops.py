"""How much arithmetic a training step or an embedded batch needs: what a utilisation (MFU) is measured against."""

from cpt_jax.model.lora import LoRA
from cpt_jax.model.shape import Shape


def step_flops(shape: Shape, tokens: int, row_length: int, pairs: int, texts: int, lora: LoRA | None = None) -> int:
    """Floating-point operations of the matrix products of one step: forward, and twice that backward.

    Computed here is what the program needs whatever the hardware: recomputation (remat, chunked encoding) does not count, and neither
    does element-wise work. Rows count as they are computed, padding included, and attention counts every product of a row with itself,
    not the half that a causal mask leaves and not only those within a text or a window: a kernel that skips the others may do better.

    Args:
      shape: of the encoder. The last layer's output projection and feed-forward part run at the texts' ends alone; so does, with
        `attention` 'blocks', all of it that can (Attention.mix_at_ends).
      tokens: columns of all rows of a step.
      row_length: columns of a row.
      pairs: pairs of the whole batch.
      texts: texts of a pair: x, y and hard negatives.
      lora: frozen matrices have no gradient of their own, a third of the work; adapters have all of it.
    """
    ends = pairs * texts
    layers, adapters = _layers(shape, tokens, row_length, ends), _adapters(shape, tokens, ends, lora)
    similarities = pairs * (pairs * (texts - 1)) * shape.embedding_width
    if not lora or not lora.rank:
        return 3 * 2 * (layers + similarities)
    scores = (shape.layers - (shape.attention == 'blocks')) * tokens * _mixing(shape, row_length)  # no weights; few of the last in 'blocks'
    return 2 * 2 * (layers - scores) + 3 * 2 * (scores + adapters + similarities)


def embedding_flops(shape: Shape, tokens: int, row_length: int, texts: int, lora: LoRA | None = None) -> int:
    """The same of a batch of texts that become vectors, one a row: forward alone."""
    return 2 * (_layers(shape, tokens, row_length, texts) + _adapters(shape, tokens, texts, lora))


def _layers(shape: Shape, tokens: int, row_length: int, texts: int) -> int:
    """Products of all layers, forward."""
    ends = _ends(shape, tokens, texts)
    inputs, output, feed_forward = _layer_parameters(shape)
    mixing = _mixing(shape, row_length)
    last = tokens * (inputs + mixing) if shape.attention != 'blocks' or shape.pooling == 'mean' else _inputs_at_ends(shape, tokens, ends)
    return (shape.layers - 1) * tokens * (inputs + mixing) + last + ((shape.layers - 1) * tokens + ends) * (output + feed_forward)


def _adapters(shape: Shape, tokens: int, texts: int, lora: LoRA | None) -> int:
    """Products of all adapters, forward."""
    if not lora or not lora.rank:
        return 0
    inner = shape.layers * tokens * _adapter_parameters(shape, lora, 'query', 'key', 'value')
    outer = ((shape.layers - 1) * tokens + _ends(shape, tokens, texts)) * _adapter_parameters(shape, lora, 'out', 'up', 'gate', 'down')
    return inner + outer


def _ends(shape: Shape, tokens: int, texts: int) -> int:
    """Positions whose last state counts."""
    return tokens if shape.pooling == 'mean' else texts


def _mixing(shape: Shape, row_length: int) -> int:
    """Of a token: its query with keys, weights with values."""
    return 2 * row_length * shape.heads * shape.head_width


def _adapter_parameters(shape: Shape, lora: LoRA, *names: str) -> int:
    """Of one layer's adapters of these matrices."""
    heads, groups = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    ends = {'query': shape.width + heads, 'key': shape.width + groups, 'value': shape.width + groups, 'out': heads + shape.width}
    ends |= {name: shape.width + shape.hidden for name in ('up', 'down', *(['gate'] if shape.gated else []))}
    return lora.rank * sum(ends.get(name, 0) for name in names if name in lora.targets)


def language_flops(shape: Shape, tokens: int, row_length: int) -> int:
    """The same of a language model's step: all layers run at all columns, and the state at each is compared with the whole vocabulary."""
    inputs, output, feed_forward = _layer_parameters(shape)
    mixing = _mixing(shape, row_length)
    head = shape.vocab_size * shape.embedding_width
    return 3 * 2 * tokens * (shape.layers * (inputs + mixing + output + feed_forward) + head)


def _inputs_at_ends(shape: Shape, tokens: int, ends: int) -> int:
    """Of the last layer before its output projection, where an end is compared with its own text alone: a column counts once."""
    query = shape.width * shape.heads * shape.head_width
    if not shape.folds_keys:
        keys_and_values = 2 * shape.width * shape.kv_heads * shape.head_width
        return tokens * (keys_and_values + 2 * shape.heads * shape.head_width) + ends * query
    return tokens * 2 * shape.heads * shape.width + ends * 3 * query


def _layer_parameters(shape: Shape) -> tuple[int, int, int]:
    """Of one layer's matrices: query, key and value; output; feed-forward."""
    inputs = shape.width * shape.head_width * (shape.heads + 2 * shape.kv_heads)
    output = shape.heads * shape.head_width * shape.width
    return inputs, output, shape.width * shape.hidden * (3 if shape.gated else 2)
