"""The loss of each data source: its own keys in `data.sources.NAME`, or those of the `loss` section
that all sources share.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpt_jax.loss.infonce import MAX_TEMPERATURE, MIN_TEMPERATURE, InfoNCE
from cpt_jax.loss.settings import LossSettings, Weight
from cpt_jax.loss.terms import GRADE, SCORES, TARGET_TERMS, VECTORS, check_terms, sum_weights
from cpt_jax.runtime.errors import UserError
from cpt_jax.training.sections import Data

Index = jax.Array | np.int32
# Values of data.sources.NAME.direction, with the weights of x to y and of y to x.
DIRECTIONS = {'xy': (1.0, 0.0), 'yx': (0.0, 1.0), 'both': (0.5, 0.5)}


@dataclasses.dataclass(frozen=True)
class SourceLoss:
    """The loss of the batches of one source.

    Attributes:
      infonce: weight of InfoNCE.
      directions: weights of x to y and of y to x in InfoNCE.
      in_batch: whether the texts of other pairs are negatives.
      temperature: its constant temperature; None: the trained one, or that of the `loss` section.
      terms: weight of each term by name.
    """

    infonce: float
    directions: tuple[float, float]
    in_batch: bool
    temperature: float | None
    terms: Mapping[str, float]

    def needs(self, target: str) -> bool:
        """Whether a term with a weight needs SCORES, GRADE or VECTORS."""
        return any(
            weight and name in TARGET_TERMS and TARGET_TERMS[name].needs == target
            for name, weight in self.terms.items()
        )

    def describe(self) -> str:
        """Returns the losses with their weights, for the startup table."""
        parts = []
        if self.infonce:
            direction = next(name for name, both in DIRECTIONS.items() if both == self.directions)
            parts.append(f'{self.infonce:g} InfoNCE ({direction})')
        parts += [f'{weight:g} {name}' for name, weight in self.terms.items() if weight]
        text = ' + '.join(parts)
        if not self.in_batch:
            text += ', no in-batch negatives'
        if self.temperature is not None:
            text += f', temperature {self.temperature:g}'
        return text


@dataclasses.dataclass(frozen=True)
class SourceLosses:
    """The losses of all sources, in the order of the mixture.

    Attributes:
      losses: loss of each source by name.
    """

    losses: Mapping[str, SourceLoss]

    def select_settings(self, source: Index) -> LossSettings:
        """Returns the settings of a batch from the source with an index, an int32 scalar."""
        losses = list(self.losses.values())
        names = list(dict.fromkeys(name for loss in losses for name in loss.terms))
        in_batch = None
        if not all(loss.in_batch for loss in losses):
            in_batch = jnp.array([loss.in_batch for loss in losses])[source]
        return LossSettings(
            _select([loss.infonce for loss in losses], source),
            _select([loss.directions[0] for loss in losses], source),
            _select([loss.directions[1] for loss in losses], source),
            in_batch,
            {
                name: _select([loss.terms.get(name, 0.0) for loss in losses], source)
                for name in names
            },
        )

    def fix_log_scale(self, log_scale: jax.Array, source: Index) -> jax.Array:
        """Returns the constant -log(temperature) of a batch's source if it has one, else
        `log_scale`.
        """
        temperatures = [loss.temperature for loss in self.losses.values()]
        if not any(temperatures):
            return log_scale
        fixed = jnp.array([-math.log(value or 1.0) for value in temperatures], jnp.float32)
        is_fixed = jnp.array([value is not None for value in temperatures])
        return jnp.where(is_fixed[source], fixed[source], log_scale)

    def describe(self) -> str:
        """Returns the loss of each source, or the one that all have."""
        described = {name: loss.describe() for name, loss in self.losses.items()}
        if len(set(described.values())) == 1:
            return next(iter(described.values()))
        return '; '.join(f'{name}: {text}' for name, text in described.items())

    def needs(self, target: str) -> tuple[bool, ...]:
        """Whether each source needs SCORES, GRADE or VECTORS."""
        return tuple(loss.needs(target) for loss in self.losses.values())


def _select(values: Sequence[float], source: Index) -> Weight:
    """Returns the value of a source; a number if all sources have the same."""
    if len(set(values)) == 1:
        return values[0]
    return jnp.array(values, jnp.float32)[source]


def read_source_losses(loss: InfoNCE, data: Data) -> SourceLosses:
    """Returns the loss of each source of a config.

    Raises:
      UserError: a key of a source is invalid, or its loss needs what the data does not have.
    """
    losses = {name: _read_source_loss(name, loss, data) for name in sorted(data.sources)}
    found = SourceLosses(losses)
    if loss.teacher and not any(found.needs(VECTORS)):
        raise UserError(
            f'loss.teacher={loss.teacher!r} has no effect: add a term that uses it, such as '
            f'--config.loss.terms=\'(("teacher_cosine", 1.0),)\''
        )
    return found


def refuse_unused_keys(loss: InfoNCE, losses: SourceLosses) -> None:
    """Raises UserError if a key is set that changes InfoNCE alone, and no source uses InfoNCE."""
    if any(source.infonce for source in losses.losses.values()):
        return
    masks = 'it masks negatives of InfoNCE'
    keys = {
        'guide': (loss.guide, masks),
        'mask_margin': (loss.mask_margin is not None, masks),
        'dimensions': (loss.dimensions, 'terms use the full vector, and only InfoNCE parts of it'),
    }
    for key, (is_set, reason) in keys.items():
        if is_set:
            raise UserError(
                f'loss.{key}={getattr(loss, key)!r} has no effect: {reason}, and its weight is 0 '
                f'in all sources: remove the key, or set loss.infonce'
            )


def _read_source_loss(name: str, loss: InfoNCE, data: Data) -> SourceLoss:
    section, where = data.sources[name], f'data.sources.{name}'
    own_terms = section.get('terms')
    if own_terms is not None:
        check_terms(f'{where}.terms', own_terms)
    terms = loss.terms if own_terms is None else own_terms
    infonce = section.get('infonce')
    in_batch = section.get('in_batch')
    found = SourceLoss(
        infonce=float(loss.infonce if infonce is None else infonce),
        directions=_read_directions(where, section, loss),
        in_batch=in_batch is None or bool(in_batch),
        temperature=section.get('temperature'),
        terms=sum_weights(terms),
    )
    if not 0 <= found.infonce < math.inf:
        raise UserError(f'{where}.infonce={infonce}: must be a number from 0 on')
    temperature = found.temperature
    if temperature is not None and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise UserError(
            f'{where}.temperature={temperature}: must be from {MIN_TEMPERATURE} (a scale of 100, '
            f'the maximum) to {MAX_TEMPERATURE}'
        )
    _check_targets(where, section, found, loss, data)
    return found


def _read_directions(where: str, section: Mapping[str, Any], loss: InfoNCE) -> tuple[float, float]:
    """Returns the weights of x to y and of y to x."""
    in_batch, direction = section.get('in_batch'), section.get('direction')
    has_no_columns = in_batch is not None and not in_batch
    if not direction:
        shared = 'both' if loss.symmetric else 'xy'
        return DIRECTIONS['xy' if has_no_columns else shared]
    if direction not in DIRECTIONS:
        raise UserError(f'{where}.direction={direction!r}: choose one of {", ".join(DIRECTIONS)}')
    if has_no_columns and direction != 'xy':
        raise UserError(
            f'{where}.direction={direction!r}: with in_batch=False a y has no negatives: set it to '
            f"'xy'"
        )
    return DIRECTIONS[direction]


def _check_targets(
    where: str, section: Mapping[str, Any], found: SourceLoss, loss: InfoNCE, data: Data
) -> None:
    """Raises UserError if a source lacks what its loss needs."""
    if not found.infonce and not any(found.terms.values()):
        raise UserError(f'{where}: its loss is 0: set infonce, or a term with a weight')
    if found.infonce and not found.in_batch and not data.negatives:
        raise UserError(
            f'{where}.in_batch=False leaves InfoNCE without negatives: set data.negatives, or '
            f'{where}.infonce=0 and terms that use scores'
        )
    if found.infonce and section.get(GRADE):
        raise UserError(
            f'{where}.{GRADE}={section[GRADE]!r}: graded pairs are not all positives, which '
            f'InfoNCE takes them for: set {where}.infonce=0 and {where}.terms=(("cosent", 1.0),)'
        )
    for name, weight in found.terms.items():
        needs = TARGET_TERMS[name].needs if name in TARGET_TERMS and weight else None
        if needs in (SCORES, GRADE) and not section.get(needs):
            raise UserError(
                f'{where}: the term {name!r} needs the field of its {needs}: set '
                f'--config.{where}.{needs}=FIELD, or --config.{where}.terms without {name!r}'
            )
        if needs == SCORES and not data.negatives:
            raise UserError(
                f'{where}: the term {name!r} compares y with hard negatives: set data.negatives'
            )
        if needs == VECTORS and not loss.teacher:
            raise UserError(
                f'{where}: the term {name!r} needs loss.teacher: set it to directories that '
                f'launch/embed.py wrote'
            )
