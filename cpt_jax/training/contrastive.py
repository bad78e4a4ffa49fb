"""The contrastive objective: each text must find its partner among all texts of the batch."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cpt_jax.data.batch import Batch
from cpt_jax.data.cutting import TokenCounter
from cpt_jax.data.equality import IDS_PER_TEXT, resolve_rule
from cpt_jax.data.mixture import make_sources
from cpt_jax.data.pairs import Pair, Source, spread_indices
from cpt_jax.data.target_reader import TargetReader, Wanted
from cpt_jax.data.text_vectors import TextVectors, read_width
from cpt_jax.data.token_reader import PairTokenReader, TokenReader
from cpt_jax.embed.embedder import Embedder
from cpt_jax.loss.infonce import MAX_LOG_SCALE, InfoNCE, Metrics
from cpt_jax.loss.targets import TargetSizes
from cpt_jax.loss.terms import GRADE, SCORES, VECTORS
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import make_dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import count_step_flops
from cpt_jax.model.initializers import constant, normal
from cpt_jax.model.parameter import make_parameter
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import build
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import Side
from cpt_jax.training.chunks import encode, merge_chunks
from cpt_jax.training.heldout_scores import MainScore
from cpt_jax.training.objective import HeldOut, Objective, Params, Scorer
from cpt_jax.training.sections import Data
from cpt_jax.training.source_losses import (
    SourceLoss,
    SourceLosses,
    read_source_losses,
    refuse_unused_keys,
)


class ContrastiveParams(Params):
    """The encoder, its Dense modules if it has any, the logarithm of the scale (1 / temperature), a
    scalar or one per source, and the linear map to a teacher's vectors if it is trained.
    """

    def __init__(
        self,
        config: EncoderConfig,
        loss: InfoNCE,
        sources: int,
        rngs: nnx.Rngs,
        mapped_width: int = 0,
    ):
        self.encoder = Encoder(config, rngs)
        if config.dense:
            self.dense = nnx.List(make_dense(config.dense, config.embedding_width, rngs))
        axes = [(sources, None)] if loss.temperature_per_source else []
        self.log_scale = make_parameter(rngs, constant(-math.log(loss.initial_temperature)), *axes)
        if mapped_width:
            init = normal(config.vector_width**-0.5)
            self.teacher_map = make_parameter(
                rngs, init, (config.vector_width, None), (mapped_width, None)
            )


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """InfoNCE over the gathered batch; see `Objective`.

    Attributes:
      loss: the loss function, with its settings.
      sources: number of data sources.
      source_losses: settings of the loss by source; None: all have those of `loss`.
    """

    loss: InfoNCE
    sources: int = 1
    source_losses: SourceLosses | None = None

    name = 'contrastive'
    next_command = 'launch/evaluate.py --tasks TASKS --model'
    marks_boundaries = False
    main_score = MainScore('heldout_mrr', 'MRR', 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], data: Data) -> 'Contrastive':
        """Returns the objective of a config.

        Raises:
          UserError: the `loss` section is invalid.
        """
        loss = build(InfoNCE, 'loss', config['loss'])
        return cls(loss, len(data.sources), read_source_losses(loss, data))

    @property
    def form(self) -> str:
        return self.loss.form

    def check_model(self, config: EncoderConfig) -> None:
        self.loss.check_width(config.vector_width)
        if self._uses_term('teacher_cosine'):
            width = read_width('loss.teacher', self.loss.teacher)
            if width != config.vector_width:
                raise UserError(
                    f"loss.terms: 'teacher_cosine' needs vectors of equal dimension: those of "
                    f"loss.teacher have {width}, the model's {config.vector_width}: use "
                    f"'teacher_mse', which learns a linear map"
                )

    def _uses_term(self, name: str) -> bool:
        losses = self.source_losses.losses.values() if self.source_losses else ()
        return any(loss.terms.get(name) for loss in losses)

    def refuse_unused_keys(self) -> None:
        if self.source_losses is not None:
            refuse_unused_keys(self.loss, self.source_losses)

    def check_origin(self, origin: Origin) -> None:
        if not isinstance(origin, EarlierRun) or origin.provenance.objective != self.name:
            return
        config = origin.provenance.config
        stored_loss = InfoNCE(
            temperature_per_source=bool(config['loss'].get('temperature_per_source', False))
        )
        stored = Contrastive(stored_loss, len(config['data']['sources']))
        if stored._temperature_shape != self._temperature_shape:
            raise UserError(
                f'init_from={origin.reference}: it trained {stored._describe_temperatures()}, and '
                f'loss.temperature_per_source={self.loss.temperature_per_source} needs '
                f'{self._describe_temperatures()}: set it to '
                f'{stored.loss.temperature_per_source}, with as many of data.sources'
            )

    @property
    def _temperature_shape(self) -> tuple[int, ...]:
        return (self.sources,) if self.loss.temperature_per_source else ()

    def _describe_temperatures(self) -> str:
        if not self.loss.temperature_per_source:
            return 'one temperature'
        return f'a temperature for each of {self.sources} sources'

    def check_lengths(self, data: Data, config: EncoderConfig, around: int, what: str) -> None:
        for key in ('max_tokens_x', 'max_tokens_y'):
            value = getattr(data, key)
            if not around < value <= min(data.row_length, config.max_length):
                raise UserError(
                    f'data.{key}={value} must be over {around} ({what}) and at most '
                    f'data.row_length={data.row_length} and model.max_length={config.max_length}'
                )

    def inherit_architecture(self, origin: Origin) -> tuple[dict[str, Any], int] | None:
        """Returns the architecture of a pretrained or language model, or of a contrastive run that
        inherited its own; None for another contrastive run, whose parameters must fit the config's
        own `model` section.
        """
        if isinstance(origin, EarlierRun):
            inherits = origin.is_language_model or origin.inherits_architecture
            return origin.model_section_and_vocab_size if inherits else None
        return origin.model_section_and_vocab_size

    def load_sources(
        self, data: Mapping[str, Any], split: str, tokenizer: TokenCounter
    ) -> tuple[dict[str, Source], dict[str, float]]:
        return make_sources(
            data['sources'],
            split,
            tokenizer,
            equal_texts=resolve_rule(data),
            verify=data.get('verify', False),
        )

    def make_reader(
        self, sources: Sequence[Source], tokenizer: TextTokenizer, data: Data
    ) -> PairTokenReader:
        return PairTokenReader(
            sources,
            tokenizer,
            data.max_tokens_x,
            data.max_tokens_y,
            data.negatives,
            data.equality_rule,
            data.token_cache_bytes,
            self._make_target_reader(sources, data),
        )

    def _make_target_reader(self, sources: Sequence[Source], data: Data) -> TargetReader | None:
        """Returns the reader of what the losses compare texts with; None if they need nothing."""
        if self.source_losses is None:
            return None
        losses = self.source_losses.losses
        _check_own_negatives(losses, sources, data.negatives)
        wanted = [
            Wanted(
                name,
                guide=bool(self.loss.guide and loss.infonce),
                scores=loss.needs(SCORES) or loss.needs(GRADE),
                teacher=loss.needs(VECTORS),
            )
            for name, loss in losses.items()
        ]
        if not any(any(one[1:]) for one in wanted):
            return None
        guide = TextVectors('loss.guide', self.loss.guide) if self.loss.guide else None
        teacher = TextVectors('loss.teacher', self.loss.teacher) if self.loss.teacher else None
        return TargetReader(2 + data.negatives, wanted, guide, teacher)

    def with_baseline(self, reader: TokenReader, heldout: Sequence[Pair]) -> Objective:
        return self

    def get_own_parameters(self, params: ContrastiveParams) -> dict[str, Any]:
        # A fixed temperature is that of the config, and the one that a next run starts from.
        own = {'log_scale': params.log_scale} if self.loss.train_temperature else {}
        return own | {'dense': params.dense} if hasattr(params, 'dense') else own

    def init(self, config: EncoderConfig, rngs: nnx.Rngs) -> ContrastiveParams:
        mapped_width = 0
        if self._uses_term('teacher_mse'):
            mapped_width = read_width('loss.teacher', self.loss.teacher)
        return ContrastiveParams(config, self.loss, self.sources, rngs, mapped_width)

    def __call__(
        self, params: ContrastiveParams, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        log_scale = self._log_scale(params, batch)
        dense = getattr(params, 'dense', ())
        if params.encoder.config.freeze_dense:
            dense = jax.lax.stop_gradient(dense)
        e_BxTxD = encode(params.encoder, batch, key, dense)
        ids_BxTxZ = merge_chunks(batch.ids_JxBxTxZ)
        targets = jax.tree.map(merge_chunks, batch.targets)
        settings = None
        if self.source_losses:
            settings = self.source_losses.select_settings(batch.source)
        teacher_map = params.teacher_map[...] if hasattr(params, 'teacher_map') else None
        value, metrics = self.loss(e_BxTxD, ids_BxTxZ, log_scale, targets, settings, teacher_map)
        return value, metrics | {'scale': jnp.exp(log_scale)}

    def _log_scale(self, params: ContrastiveParams, batch: Batch) -> jax.Array:
        shared = self._shared_log_scale(params, batch)
        if self.source_losses is None:
            return shared
        return self.source_losses.fix_log_scale(shared, batch.source)

    def _shared_log_scale(self, params: ContrastiveParams, batch: Batch) -> jax.Array:
        if not self.loss.train_temperature:
            return jnp.float32(-math.log(self.loss.initial_temperature))
        if self.loss.temperature_per_source:
            return params.log_scale[...][batch.source]
        return params.log_scale[...]

    def clip(self, params: ContrastiveParams) -> None:
        params.log_scale[...] = jnp.minimum(params.log_scale[...], MAX_LOG_SCALE)

    def get_max_lengths(self, data: Data) -> Sequence[int]:
        return [data.max_tokens_x, data.max_tokens_y, *[data.max_tokens_y] * data.negatives]

    def count_ids_per_text(self, data: Data) -> int:
        # Without the ids of other positives, which only the data tell. With the largest number of
        # them, 8, the step of configs/cpt_s.py with 2 layers has 0.01 % more operations, 0.13 %
        # more bytes of memory traffic and no more memory (compiled for v5e:8x8, not run).
        return IDS_PER_TEXT[data.equality_rule]

    def measure_targets(self, data: Data) -> TargetSizes:
        assert self.source_losses is not None
        needed = [*self.source_losses.needs(SCORES), *self.source_losses.needs(GRADE)]
        return TargetSizes(
            guide=read_width('loss.guide', self.loss.guide),
            scores=1 + data.negatives if any(needed) else 0,
            teacher=read_width('loss.teacher', self.loss.teacher),
        )

    def count_step_flops(
        self,
        config: EncoderConfig,
        tokens: int,
        row_length: float,
        pairs: int,
        texts: int,
        lora: LoRA,
    ) -> float:
        return count_step_flops(config, tokens, row_length, pairs, texts, lora)

    def make_scorer(self, held_out: HeldOut, params: ContrastiveParams) -> Scorer:
        embedder = make_embedder(params, held_out)

        def score(params: ContrastiveParams, on_batch: Callable[[], None]) -> dict[str, float]:
            embedder.encoder = params.encoder
            embedder.dense = tuple(getattr(params, 'dense', ()))
            return compute_heldout_scores(embedder, held_out.pairs, on_batch)

        return score

    def describe_batch(self, pairs: int, data: Data) -> str:
        text = (
            f'{pairs:,} pairs: up to {pairs - 1 + pairs * data.negatives:,} negatives per anchor, '
            f'log B = {np.log(pairs):.2f}'
        )
        return f'{text}; loss: {self.source_losses.describe()}' if self.source_losses else text

    def describe_heldout(self, pairs: int) -> str:
        return f'{pairs:,} pairs'

    def format_progress(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} (log B {row["log_batch"]:.2f}), '
            f'{row["pairs_per_second"]:,.0f} pairs/s'
        )

    def format_heldout(self, scores: Mapping[str, float]) -> str:
        return f'held-out MRR {scores["heldout_mrr"]:.3f} among {scores["heldout_pairs"]:,}'

    def format_scores(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} (log B {row["log_batch"]:.2f}), in-batch accuracy '
            f'{row["accuracy_xy"]:.1%}, {self.format_heldout(row)}'
        )


def _check_own_negatives(
    losses: Mapping[str, SourceLoss], sources: Sequence[Source], negatives: int, sample: int = 1024
) -> None:
    """Raises UserError if no sampled pair of a source without in-batch negatives has a hard
    negative.
    """
    for (name, loss), source in zip(losses.items(), sources, strict=True):
        if loss.in_batch or not loss.infonce or not negatives:
            continue
        indices = spread_indices(len(source), sample).tolist()
        if not any(source[index].negatives for index in indices):
            raise UserError(
                f'data.sources.{name}.in_batch=False leaves InfoNCE without negatives: its pairs '
                f'have no hard negatives: name their field with '
                f'--config.data.sources.{name}.negatives=FIELD'
            )


def make_embedder(params: ContrastiveParams, held_out: HeldOut) -> Embedder:
    """Returns an embedder with the encoder of a run that is training."""
    limits: dict[Side, int] = {'x': held_out.data.max_tokens_x, 'y': held_out.data.max_tokens_y}
    dense = tuple(getattr(params, 'dense', ()))
    return Embedder(params.encoder, held_out.tokenizer, held_out.mesh, limits, dense=dense)


def compute_heldout_scores(
    embed: Embedder, pairs: Sequence[Pair], on_batch: Callable[[], None]
) -> dict[str, float]:
    """Ranks the y's of all pairs for each x; returns the mean reciprocal rank of the partner and
    the fraction of partners ranked first.

    Ties count against the partner.

    Args:
      embed: the embedder.
      pairs: P held-out pairs.
      on_batch: called after each batch of texts; may raise an exception to stop the evaluation.
    """
    x_NxD = embed([pair.x for pair in pairs], 'x', between=on_batch)
    y_NxD = embed([pair.y for pair in pairs], 'y', between=on_batch)
    scores_NxN = x_NxD @ y_NxD.T
    rank_N = np.sum(scores_NxN >= np.diagonal(scores_NxN)[:, None], axis=1)
    return {
        'heldout_mrr': float(np.mean(1 / rank_N)),
        'heldout_first': float(np.mean(rank_N == 1)),
        'heldout_pairs': len(pairs),
    }
