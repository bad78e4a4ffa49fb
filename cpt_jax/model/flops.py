"""How much arithmetic a training step or an embedded batch needs: what a utilisation (MFU) is
measured against.
"""

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.pooling import POOLINGS


def step_flops(
    config: EncoderConfig,
    tokens: int,
    row_length: int,
    pairs: int,
    texts: int,
    lora: LoRA | None = None,
) -> int:
    """Floating-point operations of the matrix products of one step: forward, and twice that
    backward.

    Computed here is what the program needs whatever the hardware: recomputation (remat, chunked
    encoding) does not count, and neither does element-wise work. Rows count as they are computed,
    padding included, and attention counts every product of a row with itself, not the half that a
    causal mask leaves and not only those within a text or a window: a kernel that skips the others
    may do better.

    Args:
      config: architecture of the encoder. The last layer's output projection and feed-forward
        part run at the texts' ends alone; so does, with `attention` 'blocks', all of it that can
        (Attention.attend_at_text_ends).
      tokens: columns of all rows of a step.
      row_length: columns of a row.
      pairs: pairs of the whole batch.
      texts: texts of a pair: x, y and hard negatives.
      lora: frozen matrices have no gradient of their own, a third of the work; adapters have all of
        it.
    """
    ends = pairs * texts
    layers = _layers(config, tokens, row_length, ends)
    adapters = _adapters(config, tokens, ends, lora)
    similarities = pairs * (pairs * (texts - 1)) * config.embedding_width
    if not lora or not lora.rank:
        return 3 * 2 * (layers + similarities)
    # Scores have no frozen weights. In 'blocks', the last layer has few of them.
    scores = (config.layers - (config.attention == 'blocks')) * tokens * _mixing(config, row_length)
    return 2 * 2 * (layers - scores) + 3 * 2 * (scores + adapters + similarities)


def embedding_flops(
    config: EncoderConfig, tokens: int, row_length: int, texts: int, lora: LoRA | None = None
) -> int:
    """The same of a batch of texts that become vectors, one a row: forward alone."""
    return 2 * (_layers(config, tokens, row_length, texts) + _adapters(config, tokens, texts, lora))


def _layers(config: EncoderConfig, tokens: int, row_length: int, texts: int) -> int:
    """Products of all layers, forward."""
    ends = _ends(config, tokens, texts)
    inputs, output, feed_forward = _layer_parameters(config)
    mixing = _mixing(config, row_length)
    last = (
        tokens * (inputs + mixing)
        if config.attention != 'blocks' or POOLINGS[config.pooling].reduce
        else _inputs_at_ends(config, tokens, ends)
    )
    return (
        (config.layers - 1) * tokens * (inputs + mixing)
        + last
        + ((config.layers - 1) * tokens + ends) * (output + feed_forward)
    )


def _adapters(config: EncoderConfig, tokens: int, texts: int, lora: LoRA | None) -> int:
    """Products of all adapters, forward."""
    if not lora or not lora.rank:
        return 0
    inner = config.layers * tokens * _adapter_parameters(config, lora, 'query', 'key', 'value')
    outer = ((config.layers - 1) * tokens + _ends(config, tokens, texts)) * _adapter_parameters(
        config, lora, 'out', 'up', 'gate', 'down'
    )
    return inner + outer


def _ends(config: EncoderConfig, tokens: int, texts: int) -> int:
    """Positions whose last state counts."""
    return tokens if POOLINGS[config.pooling].reduce else texts


def _mixing(config: EncoderConfig, row_length: int) -> int:
    """Of a token: its query with keys, weights with values."""
    return 2 * row_length * config.heads * config.head_width


def _adapter_parameters(config: EncoderConfig, lora: LoRA, *names: str) -> int:
    """Of one layer's adapters of these matrices."""
    heads, groups = config.heads * config.head_width, config.kv_heads * config.head_width
    ends = {
        'query': config.width + heads,
        'key': config.width + groups,
        'value': config.width + groups,
        'out': heads + config.width,
    }
    ends |= {
        name: config.width + config.hidden
        for name in ('up', 'down', *(['gate'] if config.gated else []))
    }
    return lora.rank * sum(ends.get(name, 0) for name in names if name in lora.targets)


def language_flops(config: EncoderConfig, tokens: int, row_length: int) -> int:
    """The same of a language model's step: all layers run at all columns, and the state at each is
    compared with the whole vocabulary.
    """
    inputs, output, feed_forward = _layer_parameters(config)
    mixing = _mixing(config, row_length)
    head = config.vocab_size * config.embedding_width
    return 3 * 2 * tokens * (config.layers * (inputs + mixing + output + feed_forward) + head)


def _inputs_at_ends(config: EncoderConfig, tokens: int, ends: int) -> int:
    """Of the last layer before its output projection, where an end is compared with its own text
    alone: a column counts once.
    """
    query = config.width * config.heads * config.head_width
    if not config.folds_keys:
        keys_and_values = 2 * config.width * config.kv_heads * config.head_width
        return tokens * (keys_and_values + 2 * config.heads * config.head_width) + ends * query
    return tokens * 2 * config.heads * config.width + ends * 3 * query


def _layer_parameters(config: EncoderConfig) -> tuple[int, int, int]:
    """Of one layer's matrices: query, key and value; output; feed-forward."""
    inputs = config.width * config.head_width * (config.heads + 2 * config.kv_heads)
    output = config.heads * config.head_width * config.width
    return inputs, output, config.width * config.hidden * (3 if config.gated else 2)
