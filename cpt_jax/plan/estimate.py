"""Rough estimates of the memory and time of a step before it is compiled.

A sweep uses them only to decide which candidates to compile first. The estimates count arithmetic,
weights sent over the network and saved activations; their constants are round numbers.
"""

import dataclasses

from cpt_jax.data.batch import Layout
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runtime.hardware import Chip

# Rematerialization policy -> fraction of the forward pass that the backward pass recomputes. The
# backward pass itself counts as two forward passes.
_RECOMPUTED = {'none': 0.0, 'dots': 0.2, 'full': 1.0}


@dataclasses.dataclass(frozen=True)
class SweepCandidate:
    """One combination of the settings that a sweep varies.

    Attributes:
      data: size of the mesh's data axis.
      fsdp: size of the mesh's fsdp axis.
      tensor: size of the mesh's tensor axis.
      remat: rematerialization policy, as `model.remat`.
      chunks: number of chunks, as `train.encode_chunks`.
      form: form of the loss, as `loss.form`.
    """

    data: int
    fsdp: int
    tensor: int
    remat: str
    chunks: int
    form: str

    @property
    def frugality(self) -> tuple[int, int, int]:
        """Ranks of remat, chunks and form; a larger rank needs less memory and more time."""
        return list(_RECOMPUTED).index(self.remat), self.chunks, int(self.form != 'dense')


def estimate_state_bytes(candidate: SweepCandidate, trained: int, frozen_bytes: int = 0) -> int:
    """Returns the bytes per device of training state and gradient, the minimum memory of a step.

    Counts float32 parameters, two moments and the gradient, and the frozen weights of LoRA.

    Args:
      candidate: settings to estimate.
      trained: number of trained parameters.
      frozen_bytes: bytes of all frozen weights.
    """
    return (16 * trained + frozen_bytes) // (candidate.fsdp * candidate.tensor)


def estimate_bytes(
    candidate: SweepCandidate, config: EncoderConfig, layout: Layout, parameters: int, state: int
) -> float:
    """Returns the estimated bytes per device of a training step.

    It is the sum of the training state, the gathered weights of one layer, the activations saved
    for the backward pass, the temporaries of one layer, and the loss.

    Args:
      candidate: settings to estimate.
      config: config of the encoder.
      layout: layout of a batch.
      parameters: number of parameters.
      state: bytes per device, from `estimate_state_bytes`.
    """
    tokens = layout.rows * layout.row_length
    weights = 2 * 2 * parameters / config.layers / candidate.tensor
    saved = config.layers * tokens * _count_saved_bytes(candidate, config, layout.row_length)
    work = tokens * (10 * layout.row_length * config.heads + 4 * config.hidden) / candidate.tensor
    devices = candidate.data * candidate.fsdp * candidate.tensor
    pairs = layout.pairs * layout.parts * layout.chunks
    loss = float(8 * pairs * layout.texts * config.width)
    if candidate.form == 'dense':
        loss += 16 * pairs * pairs / devices
    return state + weights + saved + work + loss


def _count_saved_bytes(candidate: SweepCandidate, config: EncoderConfig, row_length: int) -> float:
    """Returns the bytes per token and layer that are saved for the backward pass.

    The arrays are bfloat16, except for the softmax.
    """
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


def estimate_seconds(
    candidate: SweepCandidate,
    config: EncoderConfig,
    layout: Layout,
    parameters: int,
    flops: int,
    chip: Chip,
) -> float:
    """Returns the estimated seconds per step: the largest of arithmetic, memory and network time.

    Args:
      candidate: settings to estimate.
      config: config of the encoder.
      layout: layout of a batch.
      parameters: number of parameters.
      flops: floating-point operations of a step, without recomputation.
      chip: kind of chip, with its rates.
    """
    devices = candidate.data * candidate.fsdp * candidate.tensor
    forward = 1 + _RECOMPUTED[candidate.remat] + (candidate.chunks > 1)
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
