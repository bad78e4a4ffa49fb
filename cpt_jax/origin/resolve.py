"""Resolves model references and the config key `init_from`. No other module does."""

import dataclasses

from cpt_jax.origin.earlier_run import EarlierRun, find_run
from cpt_jax.origin.pretrained import (
    PlannedModel,
    Pretrained,
    is_pretrained,
    open_pretrained,
    read_planned_model,
)
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import as_path


@dataclasses.dataclass(frozen=True)
class Scratch:
    """The origin of a run that starts from random weights, in the architecture of its config."""

    bos_ids = None
    pretrained_config = None
    model_section_and_vocab_size = None


Model = Pretrained | EarlierRun
Origin = Scratch | PlannedModel | Pretrained | EarlierRun


def resolve_model(
    reference: str, flag: str, pooling: str = '', base_path: str = '', similarity: str = ''
) -> Model:
    """Returns the model of a model reference.

    Args:
      reference: a run, `run@step`, `run@best:TASK`, or the directory of a pretrained model.
      flag: flag or key that the reference comes from, for messages.
      pooling: pooling of a pretrained model, see `open_pretrained`.
      base_path: see EarlierRun.
      similarity: similarity of a pretrained model, see `open_pretrained`.

    Raises:
      UserError: there is no such run or directory, or it is damaged.
    """
    if is_pretrained(reference):
        return open_pretrained(reference, pooling, similarity)
    return find_run(reference, flag, base_path)


def check_is_run(reference: str, flag: str) -> None:
    """Raises UserError if a reference is the directory of a pretrained model, not of a run.

    A new run may have no data.json and no checkpoint yet, so the folder checkpoints/ decides.
    """
    if is_pretrained(reference) and not RunDir(as_path(reference)).checkpoints.is_dir():
        raise UserError(
            f'{flag} {reference}: a pretrained model, which has no checkpoints to follow: omit '
            f'--follow'
        )


def reference_exists(reference: str) -> bool:
    """Whether the directory of a model reference exists, with any content."""
    run = reference.rpartition('@')[0] or reference
    return as_path(reference).exists() or as_path(run).exists()


def resolve_origin(init_from: str, must_exist: bool = True) -> Origin:
    """Returns the origin of a run.

    Args:
      init_from: the config key `init_from`; '' is `Scratch`.
      must_exist: whether a missing directory is an error. A plan sets it to False, because a plan
        can be made before its `init_from` exists; the origin is then `Scratch`, or `PlannedModel`
        if there is a config.json alone.

    Raises:
      UserError: see `resolve_model`.
    """
    if not init_from:
        return Scratch()
    if not must_exist and (planned := read_planned_model(init_from)):
        return planned
    if is_pretrained(init_from):
        return open_pretrained(init_from)
    if not must_exist and not reference_exists(init_from):
        return Scratch()
    return find_run(init_from, 'init_from')
