"""What a run starts from, or what a model reference names: decided here and nowhere else."""

import dataclasses
from pathlib import Path

from cpt_jax.origin.earlier_run import EarlierRun, find_run
from cpt_jax.origin.pretrained import Pretrained, is_pretrained, open_pretrained
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scratch:
    """Random weights, in the architecture of the config."""

    bos_ids = None
    pretrained_config = None
    architecture = None


Model = Pretrained | EarlierRun
Origin = Scratch | Pretrained | EarlierRun


def resolve_model(reference: str, flag: str, pooling: str = '') -> Model:
    """Returns what a model reference names.

    Args:
      reference: a run, `run@step`, `run@best:TASK`, or the directory of a pretrained model.
      flag: the flag or key that it was given with, for messages.
      pooling: see `open_pretrained`.

    Raises:
      UserError: there is no such run or directory, or it is damaged.
    """
    if is_pretrained(reference):
        return open_pretrained(reference, pooling)
    return find_run(reference, flag)


def check_is_run(reference: str, flag: str) -> None:
    """Raises UserError for the directory of a pretrained model. A run that has just begun may have
    neither data.json nor a checkpoint yet.
    """
    if is_pretrained(reference) and not RunDir(Path(reference)).checkpoints.is_dir():
        raise UserError(
            f'{flag} {reference}: a pretrained model, which has no checkpoints to follow: leave '
            f'--follow out'
        )


def is_there(reference: str) -> bool:
    """Whether a model reference names a directory that exists, whatever is in it."""
    return Path(reference).exists() or Path(reference.rpartition('@')[0] or reference).exists()


def resolve_origin(init_from: str, must_exist: bool = True) -> Origin:
    """Returns what the config key `init_from` names; '' is scratch.

    Args:
      must_exist: False for a plan, which is made before the run that it starts from: where there is
        no such directory, it counts as scratch.

    Raises:
      UserError: see `resolve_model`.
    """
    if not init_from:
        return Scratch()
    if is_pretrained(init_from):
        return open_pretrained(init_from)
    if not must_exist and not is_there(init_from):
        return Scratch()
    return find_run(init_from, 'init_from')
