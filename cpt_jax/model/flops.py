"""Floating-point operations of a training step or an embedded batch, for utilization (MFU)."""

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.pooling import POOLINGS


def count_step_flops(
    config: EncoderConfig,
    tokens: int,
    row_length: float,
    pairs: int,
    texts: int,
    lora: LoRA | None = None,
) -> float:
    """Counts the floating-point operations of the matrix products of one training step.

    The backward pass counts twice the forward pass. The count does not depend on the hardware:
    recomputation (remat, chunked encoding) and element-wise operations are excluded. Padding in
    rows is included. Attention counts all S x S products of a row, although only some are within a
    text, a window or a causal mask; a kernel that skips the others can exceed 100 % of this count.

    Args:
      config: architecture of the encoder. The last layer's output projection and feed-forward part
        count only at the ends of texts. With `attention` 'blocks', this also holds for its
        attention (Attention.attend_at_text_ends).
      tokens: columns of all rows of a step.
      row_length: columns of a row.
      pairs: pairs of the global batch.
      texts: texts of a pair: x, y and hard negatives.
      lora: LoRA section, optional. Frozen matrices have no weight gradient, which saves a third of
        their operations; adapters have forward, input-gradient and weight-gradient operations.
    """
    ends = pairs * texts
    layers = _count_layer_products(config, tokens, row_length, ends)
    adapters = _count_adapter_products(config, tokens, ends, lora)
    similarities = pairs * (pairs * (texts - 1)) * config.vector_width
    if not lora or not lora.rank:
        return 3 * 2 * (layers + similarities)
    # Attention products have no frozen weights. With 'blocks', the last layer has few of them,
    # which are left out.
    attention_layers = config.layers - (config.attention == 'blocks')
    scores = attention_layers * tokens * _count_mixing_products(config, row_length)
    return 2 * 2 * (layers - scores) + 3 * 2 * (scores + adapters + similarities)


def count_embedding_flops(
    config: EncoderConfig, tokens: int, row_length: int, texts: int, lora: LoRA | None = None
) -> int:
    """Counts the floating-point operations of embedding a batch of texts, one per row (forward pass
    only); the arguments are as in `count_step_flops`.
    """
    layers = _count_layer_products(config, tokens, row_length, texts)
    return int(2 * (layers + _count_adapter_products(config, tokens, texts, lora)))


def _count_layer_products(
    config: EncoderConfig, tokens: int, row_length: float, texts: int
) -> float:
    """Counts the multiply-adds of all layers in the forward pass."""
    ends = _count_final_positions(config, tokens, texts)
    inputs, output, feed_forward = _count_layer_parameters(config)
    mixing = _count_mixing_products(config, row_length)
    if config.attention != 'blocks' or POOLINGS[config.pooling].reduce:
        last = tokens * (inputs + mixing)
    else:
        last = _count_input_products_at_ends(config, tokens, ends)
    inner_tokens = (config.layers - 1) * tokens
    return inner_tokens * (inputs + mixing) + last + (inner_tokens + ends) * (output + feed_forward)


def _count_adapter_products(
    config: EncoderConfig, tokens: int, texts: int, lora: LoRA | None
) -> int:
    """Counts the multiply-adds of all adapters in the forward pass."""
    if not lora or not lora.rank:
        return 0
    inputs = _count_adapter_parameters(config, lora, 'query', 'key', 'value')
    outputs = _count_adapter_parameters(config, lora, 'out', 'up', 'gate', 'down')
    output_tokens = (config.layers - 1) * tokens + _count_final_positions(config, tokens, texts)
    return config.layers * tokens * inputs + output_tokens * outputs


def _count_final_positions(config: EncoderConfig, tokens: int, texts: int) -> int:
    """Counts the positions at which the last layer computes its output."""
    return tokens if POOLINGS[config.pooling].reduce else texts


def _count_mixing_products(config: EncoderConfig, row_length: float) -> float:
    """Counts the multiply-adds of attention per token: query x keys and weights x values."""
    return 2 * row_length * config.heads * config.head_width


def _count_adapter_parameters(config: EncoderConfig, lora: LoRA, *names: str) -> int:
    """Counts the parameters of one layer's adapters of the named matrices."""
    heads = config.heads * config.head_width
    groups = config.kv_heads * config.head_width
    sizes = {  # inputs + outputs
        'query': config.width + heads,
        'key': config.width + groups,
        'value': config.width + groups,
        'out': heads + config.width,
    }
    sizes |= {
        name: config.width + config.hidden
        for name in ('up', 'down', *(['gate'] if config.is_gated else []))
    }
    return lora.rank * sum(sizes.get(name, 0) for name in names if name in lora.targets)


def count_language_model_flops(config: EncoderConfig, tokens: int, row_length: float) -> float:
    """Counts the floating-point operations of a training step of a language model.

    All layers run at all columns, and logits of the whole vocabulary are computed at each column.
    """
    inputs, output, feed_forward = _count_layer_parameters(config)
    mixing = _count_mixing_products(config, row_length)
    head = config.vocab_size * config.embedding_width
    return 3 * 2 * tokens * (config.layers * (inputs + mixing + output + feed_forward) + head)


def _count_input_products_at_ends(config: EncoderConfig, tokens: int, ends: int) -> int:
    """Counts the multiply-adds of the last layer at the ends of texts, up to its output projection.

    The end of a text attends to its own text only, so each column counts once.
    """
    query = config.width * config.heads * config.head_width
    if not config.can_fold_keys:
        keys_and_values = 2 * config.width * config.kv_heads * config.head_width
        return tokens * (keys_and_values + 2 * config.heads * config.head_width) + ends * query
    return tokens * 2 * config.heads * config.width + ends * 3 * query


def _count_layer_parameters(config: EncoderConfig) -> tuple[int, int, int]:
    """Counts the weights of one layer: (query, key and value; output; feed-forward)."""
    inputs = config.width * config.head_width * (config.heads + 2 * config.kv_heads)
    output = config.heads * config.head_width * config.width
    feed_forward = config.width * config.hidden * (3 if config.is_gated else 2)
    return inputs, output, feed_forward
