"""The contrastive objective: pairs find each other among all of a batch."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.data.batch import Batch, Layout
from cpt_jax.loss.infonce import MAX_LOG_SCALE, InfoNCE, Metrics
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import step_flops
from cpt_jax.model.initializers import constant
from cpt_jax.model.lora import LoRA
from cpt_jax.model.parameter import parameter
from cpt_jax.model.shape import Shape
from cpt_jax.train.heldout import heldout_scores
from cpt_jax.train.objective import Scorer
from cpt_jax.train.step import encode, merge_chunks

if TYPE_CHECKING:
    from cpt_jax.train.setup import Data, Run


class Params(nnx.Module):
    """All that is trained."""

    def __init__(self, shape: Shape, loss: InfoNCE, sources: int, rngs: nnx.Rngs):
        self.encoder = Encoder(shape, rngs)
        each = [(sources, None)] if loss.temperature_per_source else []
        self.log_scale = parameter(rngs, constant(-math.log(loss.initial_temperature)), *each)


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """InfoNCE over the gathered batch; see `Objective`.

    Attributes:
      sources: how many there are.
    """

    loss: InfoNCE
    sources: int = 1

    name = 'contrastive'

    @property
    def form(self) -> str:
        return self.loss.form

    def check(self, shape: Shape) -> None:
        self.loss.check_width(shape.embedding_width)

    def init(self, shape: Shape, rngs: nnx.Rngs) -> Params:
        return Params(shape, self.loss, self.sources, rngs)

    def __call__(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        log_scale = self._log_scale(params, batch)
        value, metrics = self.loss(encode(params.encoder, batch, key), merge_chunks(batch.ids_CxBxT), log_scale)
        return value, metrics | {'scale': jnp.exp(log_scale)}

    def _log_scale(self, params: Params, batch: Batch) -> jax.Array:
        if not self.loss.train_temperature:
            return jnp.float32(-math.log(self.loss.initial_temperature))
        return params.log_scale[...][batch.source] if self.loss.temperature_per_source else params.log_scale[...]

    def clip(self, params: Params) -> None:
        params.log_scale[...] = jnp.minimum(params.log_scale[...], MAX_LOG_SCALE)

    def longest(self, data: 'Data') -> Sequence[int]:
        return [data.max_tokens_x, data.max_tokens_y, *[data.max_tokens_y] * data.negatives]

    def flops(self, shape: Shape, layout: Layout, pairs: int, lora: LoRA) -> int:
        return step_flops(shape, layout.tokens, layout.row_length, pairs, layout.texts, lora)

    def scorer(self, run: 'Run', params: Params) -> Scorer:
        embedder = run.embedder(params)

        def score(params: Params, between: Callable[[], None]) -> dict[str, float]:
            embedder.encoder = params.encoder
            return heldout_scores(embedder, run.heldout, between)

        return score

    def batch_line(self, pairs: int, data: 'Data') -> str:
        return f'{pairs:,} pairs: up to {pairs - 1 + pairs * data.negatives:,} negatives per anchor, log B = {np.log(pairs):.2f}'

    def heldout_line(self, pairs: int) -> str:
        return f'{pairs:,} pairs'

    def figures(self, row: Mapping[str, float]) -> str:
        return f'loss {row["loss"]:.3f} of {row["log_batch"]:.2f}, {row["pairs_per_second"]:,.0f} pairs/s'

    def line(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} (log B {row["log_batch"]:.2f}), in-batch accuracy {row["accuracy_xy"]:.1%},'
            f' held-out MRR {row["heldout_mrr"]:.3f} among {row["heldout_pairs"]:,}'
        )
