"""InfoNCE over the global batch, as the training step calls it."""

import dataclasses
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.chunked import chunked
from cpt_jax.loss.dense import dense
from cpt_jax.loss.terms import TERMS
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import AXES, BATCH

# The step keeps exp(log_scale) <= 100 (CLIP, arXiv 2103.00020 section 2.5; the cpt paper is
# silent).
MAX_LOG_SCALE = 4.605170185988092

FORMS = ('dense', 'chunked')
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """The `loss` section of a config.

    Attributes:
      form: 'dense' holds its device's share of the similarities, b x B, at once; 'chunked' one part
        of `chunks` of it, and computes it again in the backward pass: a third more work.
      chunks: parts of the batch that 'chunked' gathers and compares one after the other.
      initial_temperature: similarities are divided by it at the start; it is trained as log_scale =
        -log(temperature).
      train_temperature: False: they are divided by it throughout (SimCSE and PromptEOL: 0.05),
        whatever a run in `init_from` had learned.
      temperature_per_source: a temperature for each source of the data, instead of one for all.
      symmetric: the mean of both directions (the cpt paper's pseudo-code); False: x finds y alone.
      dimensions: Matryoshka (arXiv 2205.13147): the mean of the losses of the first so many units,
        each normalised. (): all units alone.
      terms: (name in cpt_jax/loss/terms.py, weight) of each term that is added. 'uniformity' holds
        similarities b x B at once, whatever `form` is.
    """

    form: str = 'dense'
    chunks: int = 8
    initial_temperature: float = 0.07
    train_temperature: bool = True
    temperature_per_source: bool = False
    symmetric: bool = True
    dimensions: Sequence[int] = ()
    terms: Sequence[tuple[str, float]] = ()

    def __post_init__(self):
        _check_terms(self.terms)
        if self.form not in FORMS:
            raise UserError(f'loss.form={self.form!r}: choose one of {", ".join(FORMS)}')
        if self.chunks < 1:
            raise UserError(f'loss.chunks={self.chunks}: must be 1 or more')
        if not 0.01 <= self.initial_temperature <= 100:
            raise UserError(
                f'loss.initial_temperature={self.initial_temperature}: choose 0.01 (a scale of '
                f'100, the cap) to 100'
            )
        if self.temperature_per_source and not self.train_temperature:
            raise UserError(
                'loss.temperature_per_source=True goes with loss.train_temperature=True: all '
                'would stay the same'
            )
        if not _are_dimensions(self.dimensions):
            raise UserError(
                f'loss.dimensions={self.dimensions!r}: different numbers of units, each 1 or more'
            )

    def check_width(self, width: int) -> None:
        """Raises UserError if `dimensions` asks for more units than the vectors have."""
        if self.dimensions and max(self.dimensions) > width:
            raise UserError(
                f'loss.dimensions={tuple(self.dimensions)}: the model has model.width={width} units'
            )

    def __call__(
        self, e_BxTxD: jax.Array, ids_BxT: jax.Array, log_scale: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a global batch.

        Args:
          e_BxTxD: unit vectors, float32 or bfloat16: x, y, then hard negatives.
          ids_BxT: int32 content ids of the same texts; 0 where there is none. A pair whose x is 0
            is left out of everything.
          log_scale: float32 scalar.

        Returns:
          The mean loss in nats over the pairs that are there, and scalars: `accuracy_xy` and
            `accuracy_yx` (is the partner nearer than every other candidate), `positive_cosine`,
            `negative_cosine`, `log_batch` (the loss of a model that knows nothing), `pairs`. Where
            there are several `dimensions`, they are those of the most units.
        """
        # Flat over the whole mesh, so that tensor devices compute rows of their own; where the
        # batch does not divide so far, they repeat.
        axes = AXES if ids_BxT.shape[0] % jax.sharding.get_abstract_mesh().size == 0 else BATCH
        e_BxTxD, ids_BxT = (jax.reshard(array, P(axes)) for array in (e_BxTxD, ids_BxT))
        all_units: list[int | None] = [*sorted(self.dimensions)] or [None]
        results = [
            self._of(first_units(e_BxTxD, units), ids_BxT, log_scale, axes) for units in all_units
        ]
        # `sum` has type Array | int: there is at least one array.
        total = cast(jax.Array, sum(value for value, _ in results))
        loss, metrics = total / len(results), results[-1][1]
        for name, weight in self.terms:
            value = TERMS[name](e_BxTxD, ids_BxT, axes)
            loss = loss + weight * value
            metrics[name] = jax.lax.stop_gradient(value)
        return loss, metrics

    def _of(
        self, e_BxTxD: jax.Array, ids_BxT: jax.Array, log_scale: jax.Array, axes: tuple[str, ...]
    ) -> tuple[jax.Array, Metrics]:
        scale = jnp.exp(log_scale)
        sums = (
            dense(e_BxTxD, ids_BxT, scale, axes)
            if self.form == 'dense'
            else chunked(e_BxTxD, ids_BxT, scale, axes, self.chunks)
        )
        mean = {name: total / jnp.maximum(sums['pairs'], 1) for name, total in sums.items()}
        loss = (mean['loss_xy'] + mean['loss_yx']) / 2 if self.symmetric else mean['loss_xy']
        metrics = {
            name: mean[name] for name in ('accuracy_xy', 'accuracy_yx', 'positive_cosine')
        } | {
            'negative_cosine': sums['negative_cosine'] / jnp.maximum(sums['negatives'], 1),
            'log_batch': jnp.log(jnp.maximum(sums['pairs'], 1)),
            'pairs': sums['pairs'],
        }
        return loss, jax.lax.stop_gradient(metrics)


def _check_terms(terms: Sequence[tuple[str, float]]) -> None:
    for term in terms:
        match term:
            case (str(name), int() | float()):
                if name not in TERMS:
                    raise UserError(
                        f'loss.terms: there is no term {name!r}; choose from {", ".join(TERMS)}'
                    )
            case _:
                raise UserError(
                    f'loss.terms={terms!r}: pairs of a name and a weight, such as '
                    f'(("uniformity", 0.1),)'
                )


def _are_dimensions(dimensions: Sequence[int]) -> bool:
    return (
        isinstance(dimensions, list | tuple)
        and all(isinstance(units, int) and units >= 1 for units in dimensions)
        and len(set(dimensions)) == len(dimensions)
    )


def first_units(e_BxTxD: jax.Array, units: int | None) -> jax.Array:
    """The first so many units, and then normalised (arXiv 2205.13147); None: the vectors as they
    are.
    """
    if units is None or units == e_BxTxD.shape[-1]:
        return e_BxTxD
    e_BxTxD = e_BxTxD[..., :units]
    norm_BxTx1 = jnp.sqrt(
        jnp.sum(jnp.square(e_BxTxD.astype(jnp.float32)), -1, keepdims=True) + 1e-12
    )
    return (e_BxTxD / norm_BxTx1).astype(e_BxTxD.dtype)
