"""InfoNCE over the global batch: the loss that the training step calls."""

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.candidates import NegativeRules
from cpt_jax.loss.chunked import compute_chunked_sums
from cpt_jax.loss.dense import compute_dense_sums
from cpt_jax.loss.false_negatives import limit_negatives
from cpt_jax.loss.settings import LossSettings, weigh
from cpt_jax.loss.targets import NO_TARGETS, Targets
from cpt_jax.loss.term_inputs import TermInputs
from cpt_jax.loss.terms import TARGET_TERMS, TERMS, check_terms, sum_weights
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import AXES, BATCH

# The training step clips log_scale so that exp(log_scale) <= 100, as in CLIP (arXiv 2103.00020,
# section 2.5). The cpt paper does not specify a bound.
MAX_LOG_SCALE = 4.605170185988092
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100

FORMS = ('dense', 'chunked')
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """The `loss` section of a config.

    Attributes:
      form: implementation: 'dense' holds all b x B similarities of a device at once; 'chunked'
        holds 1 / `chunks` of them, and recomputes them in the backward pass (a third more work).
      chunks: number of chunks that 'chunked' gathers and compares one after the other.
      initial_temperature: initial value of the temperature, by which similarities are divided. It
        is trained as log_scale = -log(temperature).
      train_temperature: whether the temperature is trained. If False, it stays at
        `initial_temperature` (SimCSE and PromptEOL: 0.05), and a value learned by the run in
        `init_from` is ignored.
      temperature_per_source: whether each data source has its own temperature; default: one
        temperature for all.
      symmetric: whether the loss is the mean of both directions (the cpt paper's pseudo-code);
        False: only x to y.
      dimensions: Matryoshka embedding dimensions (arXiv 2205.13147): the loss is the mean of the
        losses of the vectors truncated to each of these dimensions and normalized; (): full
        dimension only.
      infonce: weight of InfoNCE itself; 0: only the terms are trained on.
      terms: (name in cpt_jax/loss/terms.py, weight) of each added term; the weights of a repeated
        term are added. 'uniformity' holds b x B similarities at once, whatever `form` is.
      teacher: comma-separated directories of a teacher's vectors of all texts, written by
        launch/embed.py, for the terms 'teacher_cosine' and 'teacher_mse'.
      teacher_temperature: number by which a teacher's scores are divided, for the terms 'kl' and
        'margin_mse'.
      mask_margin: a candidate whose cosine with the anchor is above that of the anchor's pair by
        more than this margin is no negative; None: only equal texts are no negatives. 0.1 is the
        margin of Qwen3-Embedding (arXiv 2506.05176). GISTEmbedLoss of sentence-transformers has
        the opposite sign.
      mask_relative: whether `mask_margin` is a fraction of the pair's absolute cosine.
      guide: comma-separated directories of a guide's vectors of all texts, written by
        launch/embed.py. Its cosines are compared for `mask_margin`; '': the model's own.
    """

    form: str = 'dense'
    chunks: int = 8
    initial_temperature: float = 0.07
    train_temperature: bool = True
    temperature_per_source: bool = False
    symmetric: bool = True
    dimensions: Sequence[int] = ()
    terms: Sequence[tuple[str, float]] = ()
    mask_margin: float | None = None
    mask_relative: bool = False
    guide: str = ''
    infonce: float = 1.0
    teacher: str = ''
    teacher_temperature: float = 1.0

    def __post_init__(self):
        check_terms('loss.terms', self.terms)
        if self.form not in FORMS:
            raise UserError(f'loss.form={self.form!r}: choose one of {", ".join(FORMS)}')
        if self.chunks < 1:
            raise UserError(f'loss.chunks={self.chunks}: must be 1 or more')
        if not MIN_TEMPERATURE <= self.initial_temperature <= MAX_TEMPERATURE:
            raise UserError(
                f'loss.initial_temperature={self.initial_temperature}: must be from '
                f'{MIN_TEMPERATURE} (a scale of 100, the maximum) to {MAX_TEMPERATURE}'
            )
        if self.temperature_per_source and not self.train_temperature:
            raise UserError(
                'loss.temperature_per_source=True needs loss.train_temperature=True: otherwise '
                'all temperatures would stay equal'
            )
        if not _are_valid_dimensions(self.dimensions):
            raise UserError(
                f'loss.dimensions={self.dimensions!r}: must be a tuple of distinct integers, each '
                f'1 or more'
            )
        self._check_mask()
        if not 0 <= self.infonce < math.inf:
            raise UserError(f'loss.infonce={self.infonce}: must be a number from 0 on')
        if not 0 < self.teacher_temperature < math.inf:
            raise UserError(
                f'loss.teacher_temperature={self.teacher_temperature}: must be a number above 0'
            )

    def _check_mask(self) -> None:
        margin = self.mask_margin
        if margin is None:
            for key, default in {'mask_relative': False, 'guide': ''}.items():
                if (value := getattr(self, key)) != default:
                    raise UserError(
                        f'loss.{key}={value!r} needs loss.mask_margin: set it, such as to 0.1'
                    )
        elif not -2 <= margin <= 2:
            raise UserError(
                f'loss.mask_margin={margin}: must be from -2 to 2, the range of differences of '
                f'cosines, or None'
            )

    def check_width(self, width: int) -> None:
        """Raises UserError if one of `dimensions` is larger than the embedding dimension."""
        if self.dimensions and max(self.dimensions) > width:
            raise UserError(
                f'loss.dimensions={tuple(self.dimensions)}: must not be larger than '
                f'model.width={width}'
            )

    def __call__(
        self,
        e_BxTxD: jax.Array,
        ids_BxTxZ: jax.Array,
        log_scale: jax.Array,
        targets: Targets[jax.Array] = NO_TARGETS,
        settings: LossSettings | None = None,
        teacher_map: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss and the metrics of a global batch.

        Args:
          e_BxTxD: unit vectors, float32 or bfloat16: x, y, then hard negatives.
          ids_BxTxZ: int32 ids by which the same texts are compared; 0 for an absent text. A pair
            whose x is absent is ignored.
          log_scale: float32 scalar, -log(temperature).
          targets: what the vectors are compared with, [B, ...] each.
          settings: settings of the batch; default: `default_settings`.
          teacher_map: float32[D, W], the learned linear map of the term 'teacher_mse'.

        Returns:
          The mean loss in nats over the present pairs, and scalar metrics: `accuracy_xy` and
            `accuracy_yx` (fraction of pairs whose partner is nearer than every other candidate),
            `positive_cosine`, `negative_cosine`, `log_batch` (loss of a model that assigns equal
            probabilities), `pairs`; with `mask_margin`, `masked_negatives` (fraction of the
            negatives that the margin leaves out for x; the other metrics do not leave them out).
            With several `dimensions`, metrics are those of the largest. With terms, the value of
            each by name, 0 if the batch has no weight for it, and that of InfoNCE.
        """
        # Split over the whole mesh if the batch size allows it, so that devices of the tensor axis
        # compute different rows. Otherwise they repeat the same rows.
        axes = AXES if ids_BxTxZ.shape[0] % jax.sharding.get_abstract_mesh().size == 0 else BATCH
        e_BxTxD, ids_BxTxZ, targets = jax.tree.map(
            lambda array: jax.reshard(array, P(axes)), (e_BxTxD, ids_BxTxZ, targets)
        )
        settings = settings or self.default_settings
        dimensions: list[int | None] = [*sorted(self.dimensions)] or [None]
        results = [
            self._compute_loss(
                truncate_dimensions(e_BxTxD, dimension),
                ids_BxTxZ,
                log_scale,
                targets.guide,
                settings,
                axes,
            )
            for dimension in dimensions
        ]
        # `sum` has type Array | int, but `results` is never empty.
        total = cast(jax.Array, sum(value for value, _ in results))
        loss = total / len(results)
        metrics = results[-1][1]
        if settings.terms:
            metrics['infonce'] = jax.lax.stop_gradient(loss)
        scale = jax.lax.stop_gradient(jnp.exp(log_scale))
        inputs = TermInputs(
            e_BxTxD, ids_BxTxZ, scale, targets, self.teacher_temperature, teacher_map
        )
        loss = weigh(settings.infonce, loss)
        for name, weight in settings.terms.items():
            if isinstance(weight, float) and weight == 0:  # the batch may lack what it needs
                metrics[name] = jnp.zeros_like(loss)
                continue
            if name in TERMS:
                value = TERMS[name](e_BxTxD, ids_BxTxZ, axes)
            else:
                value = TARGET_TERMS[name].compute(inputs)
            loss = loss + weight * value
            metrics[name] = jax.lax.stop_gradient(jnp.where(jnp.equal(weight, 0), 0, value))
        return loss, metrics

    @property
    def default_settings(self) -> LossSettings:
        """The settings of a batch whose source has none of its own."""
        xy = 0.5 if self.symmetric else 1.0
        return LossSettings(float(self.infonce), xy, 1 - xy, None, sum_weights(self.terms))

    def _compute_loss(
        self,
        e_BxTxD: jax.Array,
        ids_BxTxZ: jax.Array,
        log_scale: jax.Array,
        guide_BxTxW: jax.Array | None,
        settings: LossSettings,
        axes: tuple[str, ...],
    ) -> tuple[jax.Array, Metrics]:
        scale = jnp.exp(log_scale)
        ids_BxTZ = ids_BxTxZ.reshape(len(ids_BxTxZ), -1)
        rules = NegativeRules()
        if self.mask_margin is not None:
            rules = limit_negatives(e_BxTxD, self.mask_margin, self.mask_relative, guide_BxTxW)
        if settings.in_batch is not None:
            in_batch_B = (ids_BxTZ[:, 0] > 0) & settings.in_batch
            rules = rules._replace(in_batch_c=in_batch_B)
        if self.form == 'dense':
            sums = compute_dense_sums(e_BxTxD, ids_BxTZ, scale, rules, axes)
        else:
            sums = compute_chunked_sums(e_BxTxD, ids_BxTZ, scale, rules, axes, self.chunks)
        mean = {name: total / jnp.maximum(sums['pairs'], 1) for name, total in sums.items()}
        loss = _combine_directions(mean['loss_xy'], mean['loss_yx'], settings)
        metrics = {
            'accuracy_xy': mean['accuracy_xy'],
            'accuracy_yx': mean['accuracy_yx'],
            'positive_cosine': mean['positive_cosine'],
            'negative_cosine': sums['negative_cosine'] / jnp.maximum(sums['negatives'], 1),
            'log_batch': jnp.log(jnp.maximum(sums['pairs'], 1)),
            'pairs': sums['pairs'],
        }
        if 'near' in sums:
            metrics['masked_negatives'] = sums['near'] / jnp.maximum(sums['negatives'], 1)
        return loss, jax.lax.stop_gradient(metrics)


def _combine_directions(
    loss_xy: jax.Array, loss_yx: jax.Array, settings: LossSettings
) -> jax.Array:
    """Returns the weighted mean of both directions; one of them alone if the other has no weight in
    any batch.
    """
    directions = [(settings.xy, loss_xy), (settings.yx, loss_yx)]
    kept = [
        (weight, loss)
        for weight, loss in directions
        if not (isinstance(weight, float) and weight == 0)
    ]
    if len(kept) == 1:
        return weigh(*kept[0])
    if isinstance(settings.xy, float) and settings.xy == 0.5:
        return (loss_xy + loss_yx) / 2
    return settings.xy * loss_xy + settings.yx * loss_yx


def _are_valid_dimensions(dimensions: Sequence[int]) -> bool:
    return (
        isinstance(dimensions, list | tuple)
        and all(isinstance(dimension, int) and dimension >= 1 for dimension in dimensions)
        and len(set(dimensions)) == len(dimensions)
    )


def truncate_dimensions(e_BxTxD: jax.Array, dimension: int | None) -> jax.Array:
    """Truncates vectors to their first `dimension` elements and normalizes them (arXiv 2205.13147).

    None or the full dimension returns the vectors unchanged.
    """
    if dimension is None or dimension == e_BxTxD.shape[-1]:
        return e_BxTxD
    e_BxTxD = e_BxTxD[..., :dimension]
    norm_BxTx1 = jnp.sqrt(
        jnp.sum(jnp.square(e_BxTxD.astype(jnp.float32)), -1, keepdims=True) + 1e-12
    )
    return (e_BxTxD / norm_BxTx1).astype(e_BxTxD.dtype)
