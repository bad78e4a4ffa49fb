"""A guess at the memory and time of a step before it is compiled: a sweep compiles what promises
most first.

Only the order depends on it. Arithmetic, weights on the wire and activations that are kept are
counted; constants are round numbers.
"""

import dataclasses

from cpt_jax.data.batch import Layout
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runtime.hardware import Chip

# Passes through the layers: forward, and backward as two; a policy adds the forward work that the
# backward pass repeats.
_REPEATED = {'none': 0.0, 'dots': 0.2, 'full': 1.0}


@dataclasses.dataclass(frozen=True)
class SweepCandidate:
    """What a sweep varies."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    chunks: int
    form: str

    @property
    def frugality(self) -> tuple[int, int, int]:
        """Each choice that needs less memory and more time is a larger number."""
        return list(_REPEATED).index(self.remat), self.chunks, int(self.form != 'dense')


def state_bytes(candidate: SweepCandidate, trained: int, frozen_bytes: int = 0) -> int:
    """Of a device: float32 parameters, two moments and the gradient, and what LoRA leaves as it is.
    Without these nothing runs.
    """
    return (16 * trained + frozen_bytes) // (candidate.fsdp * candidate.tensor)


def guess_bytes(
    candidate: SweepCandidate, config: EncoderConfig, layout: Layout, parameters: int, state: int
) -> float:
    """Of a device: the `state` (`state_bytes`), a layer's weights gathered, what the backward pass
    keeps, a layer's work, and the loss.
    """
    tokens = layout.rows * layout.row_length
    weights = 2 * 2 * parameters / config.layers / candidate.tensor
    keep = config.layers * tokens * _kept(candidate, config, layout.row_length)
    work = tokens * (10 * layout.row_length * config.heads + 4 * config.hidden) / candidate.tensor
    devices = candidate.data * candidate.fsdp * candidate.tensor
    pairs = layout.pairs * layout.parts * layout.chunks
    loss = 8 * pairs * layout.texts * config.width + (
        16 * pairs * pairs / devices if candidate.form == 'dense' else 0
    )
    return state + weights + keep + work + loss


def _kept(candidate: SweepCandidate, config: EncoderConfig, row_length: int) -> float:
    """Bytes a token and layer that wait for the backward pass, in bfloat16 but for the softmax."""
    carried = 2 * config.width
    if candidate.remat == 'full':
        return carried
    projected = (
        2
        * (config.head_width * (config.heads + 2 * config.kv_heads) + 2 * config.hidden)
        / candidate.tensor
        + 2 * carried
    )
    if candidate.remat == 'dots':
        return carried + projected
    return carried + 2 * projected + 6 * row_length * config.heads / candidate.tensor


def guess_seconds(
    candidate: SweepCandidate,
    config: EncoderConfig,
    layout: Layout,
    parameters: int,
    flops: int,
    chip: Chip,
) -> float:
    """The largest of arithmetic, memory and network, of a step."""
    devices = candidate.data * candidate.fsdp * candidate.tensor
    forward = 1 + _REPEATED[candidate.remat] + (candidate.chunks > 1)
    compute = flops * (forward + 2) / 3 / (devices / chip.devices * chip.flops)
    tokens = layout.rows * layout.row_length * layout.chunks
    touched = (
        tokens * (12 * layout.row_length * config.heads + 8 * config.hidden) / candidate.tensor
        + tokens * 16 * config.width
    )
    memory = config.layers * touched * (forward + 2) * chip.devices / chip.hbm_rate
    weights = 2 * parameters / candidate.tensor
    gathers = weights * (forward + 1) * candidate.chunks * (1 - 1 / candidate.fsdp)
    gradients = 2 * weights * (1 - 1 / (candidate.fsdp * candidate.data))
    sums = 4 * config.layers * (forward + 1) * tokens * config.width * (1 - 1 / candidate.tensor)
    links = 2 * chip.dimensions * chip.link_rate / chip.devices
    return max(compute, memory, (gathers + gradients + sums) / links)
