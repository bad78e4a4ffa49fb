"""The contrastive objective: pairs find each other among all of a batch."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.data.batch import Batch, Layout, Texts, Tokens
from cpt_jax.data.mixture import make_sources
from cpt_jax.data.pairs import Pair, Source
from cpt_jax.data.sources.text import TokenCounter
from cpt_jax.embed.embedder import Embedder
from cpt_jax.loss.infonce import MAX_LOG_SCALE, InfoNCE, Metrics
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import step_flops
from cpt_jax.model.initializers import constant
from cpt_jax.model.parameter import parameter
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Side, Tokenizer
from cpt_jax.training.chunks import encode, merge_chunks
from cpt_jax.training.objective import HeldOut, Objective, Params, Scorer
from cpt_jax.training.sections import Data


class ContrastiveParams(Params):
    """All that is trained."""

    def __init__(self, config: EncoderConfig, loss: InfoNCE, sources: int, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)
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
    next_command = 'launch/evaluate.py --tasks TASKS --model'
    marks_boundaries = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], data: Data) -> 'Contrastive':
        """Returns the objective of a config. Raises UserError where its `loss` section is wrong."""
        return cls(build(InfoNCE, 'loss', config['loss']), len(data.sources))

    @property
    def form(self) -> str:
        return self.loss.form

    def check(self, config: EncoderConfig) -> None:
        self.loss.check_width(config.embedding_width)

    def check_lengths(self, data: Data, config: EncoderConfig, around: int, what: str) -> None:
        for key in ('max_tokens_x', 'max_tokens_y'):
            value = getattr(data, key)
            if not around < value <= min(data.row_length, config.max_length):
                raise UserError(
                    f'data.{key}={value} must be over {around} ({what}) and at most '
                    f'data.row_length={data.row_length} and model.max_length={config.max_length}'
                )

    def inherit_architecture(self, origin: Origin) -> tuple[dict[str, Any], int] | None:
        """That of a pretrained or language model; from another contrastive run come parameters of
        the config's own architecture.
        """
        if isinstance(origin, EarlierRun) and not origin.is_language_model:
            return None
        return origin.architecture

    def load_sources(
        self, sections: Mapping[str, Mapping[str, Any]], split: str, tokenizer: TokenCounter
    ) -> tuple[dict[str, Source], dict[str, float]]:
        return make_sources(sections, split, tokenizer)

    def make_reader(
        self, sources: Sequence[Source], tokenizer: Tokenizer | PromptTokenizer, data: Data
    ) -> Texts:
        return Texts(sources, tokenizer, data.max_tokens_x, data.max_tokens_y, data.negatives)

    def with_baseline(self, reader: Tokens, heldout: Sequence[Pair]) -> Objective:
        return self

    def own_parameters(self, params: ContrastiveParams) -> dict[str, Any]:
        return {'log_scale': params.log_scale}

    def init(self, config: EncoderConfig, rngs: nnx.Rngs) -> ContrastiveParams:
        return ContrastiveParams(config, self.loss, self.sources, rngs)

    def __call__(
        self, params: ContrastiveParams, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        log_scale = self._log_scale(params, batch)
        value, metrics = self.loss(
            encode(params.encoder, batch, key), merge_chunks(batch.ids_CxBxT), log_scale
        )
        return value, metrics | {'scale': jnp.exp(log_scale)}

    def _log_scale(self, params: ContrastiveParams, batch: Batch) -> jax.Array:
        if not self.loss.train_temperature:
            return jnp.float32(-math.log(self.loss.initial_temperature))
        return (
            params.log_scale[...][batch.source]
            if self.loss.temperature_per_source
            else params.log_scale[...]
        )

    def clip(self, params: ContrastiveParams) -> None:
        params.log_scale[...] = jnp.minimum(params.log_scale[...], MAX_LOG_SCALE)

    def longest(self, data: Data) -> Sequence[int]:
        return [data.max_tokens_x, data.max_tokens_y, *[data.max_tokens_y] * data.negatives]

    def flops(self, config: EncoderConfig, layout: Layout, pairs: int, lora: LoRA) -> int:
        return step_flops(config, layout.tokens, layout.row_length, pairs, layout.texts, lora)

    def scorer(self, held_out: HeldOut, params: ContrastiveParams) -> Scorer:
        embedder = make_embedder(params, held_out)

        def score(params: ContrastiveParams, between: Callable[[], None]) -> dict[str, float]:
            embedder.encoder = params.encoder
            return heldout_scores(embedder, held_out.pairs, between)

        return score

    def batch_line(self, pairs: int, data: Data) -> str:
        return (
            f'{pairs:,} pairs: up to {pairs - 1 + pairs * data.negatives:,} negatives per anchor, '
            f'log B = {np.log(pairs):.2f}'
        )

    def heldout_line(self, pairs: int) -> str:
        return f'{pairs:,} pairs'

    def figures(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} of {row["log_batch"]:.2f}, {row["pairs_per_second"]:,.0f} '
            f'pairs/s'
        )

    def line(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} (log B {row["log_batch"]:.2f}), in-batch accuracy '
            f'{row["accuracy_xy"]:.1%}, held-out MRR {row["heldout_mrr"]:.3f} among '
            f'{row["heldout_pairs"]:,}'
        )


def make_embedder(params: ContrastiveParams, held_out: HeldOut) -> Embedder:
    """Returns the encoder of a run in training, for embedding."""
    limits: dict[Side, int] = {'x': held_out.data.max_tokens_x, 'y': held_out.data.max_tokens_y}
    return Embedder(params.encoder, held_out.tokenizer, held_out.mesh, limits)


def heldout_scores(
    embed: Embedder, pairs: Sequence[Pair], between: Callable[[], None]
) -> dict[str, float]:
    """How well x finds its y among the y's of all pairs: mean reciprocal rank, and the share found
    first. Ties count against.

    `between` is called after each batch of texts, and may raise to end it.
    """
    x_PxD = embed([pair.x for pair in pairs], 'x', between=between)
    y_PxD = embed([pair.y for pair in pairs], 'y', between=between)
    scores_PxP = x_PxD @ y_PxD.T
    rank_P = np.sum(scores_PxP >= np.diagonal(scores_PxP)[:, None], axis=1)
    return {
        'heldout_mrr': float(np.mean(1 / rank_P)),
        'heldout_first': float(np.mean(rank_P == 1)),
        'heldout_pairs': len(pairs),
    }
