"""References to the checkpoints of a run, as `--model` and `init_from` take them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.runs.best_checkpoint import find_best, is_complete
from cpt_jax.runs.checkpoint import DamagedCheckpoint, list_steps
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import as_path, make_absolute, make_path

T = TypeVar('T')


def find_checkpoint(reference: str, flag: str) -> tuple[Path, int]:
    """Resolves a model reference to a checkpoint.

    Args:
      reference: a run's directory (its latest step), `run@step`, `run@best:TASK` (the step with the
        best score of a task that launch/evaluate.py --follow measured; `heldout` is the held-out
        score), or `run@best` (see `find_best`).
      flag: flag or key that the reference comes from; messages begin with it.

    Returns:
      The directory of the checkpoints, and the step.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    name, wanted = _split_reference(reference)
    run = make_absolute(make_path(name, flag))
    if wanted.partition(':')[0] == 'best':
        return find_best(run, wanted.partition(':')[2], f'{flag} {reference}')
    directory, best = RunDir(run).checkpoints, RunDir(run).best_checkpoints
    steps = list_steps(directory)
    # The best checkpoint stays there after training has deleted its own copy.
    if wanted.isdigit() and int(wanted) not in steps and is_complete(best / wanted):
        return best, int(wanted)
    if not steps:
        raise UserError(
            f'{flag} {reference}: no run with a checkpoint ({RunDir(Path(name)).checkpoints} holds '
            f'none){_explain_not_pretrained(make_path(name, flag))}'
        )
    if wanted and wanted not in map(str, steps):
        raise UserError(
            f'{flag} {reference}: no such checkpoint; there are {", ".join(map(str, steps))}'
        )
    return directory, int(wanted) if wanted else steps[-1]


def names_checkpoint(reference: str) -> bool:
    """Returns whether a model reference names one checkpoint of a run, not its latest."""
    return bool(_split_reference(reference)[1])


def _split_reference(reference: str) -> tuple[str, str]:
    """Splits 'run@checkpoint'; the second part is '' if there is none."""
    name, at, wanted = reference.rpartition('@')
    # The path of a run may itself contain an @.
    if not at or RunDir(as_path(reference)).checkpoints.is_dir():
        return reference, ''
    return name, wanted


def use_newest_intact(reference: str, directory: Path, step: int, read: Callable[[int], T]) -> T:
    """Returns `read(step)`, or the result for the newest older step that all processes can read.

    Prints a line for each checkpoint that is damaged.

    Args:
      reference: a model reference; if it names a step, no other step is read.
      directory: directory of the checkpoints.
      step: step of the reference.
      read: function that reads a checkpoint.

    Raises:
      DamagedCheckpoint: the checkpoint of the reference is damaged, and so are all older ones that
        may be read instead.
    """
    older = [other for other in list_steps(directory) if other < step]
    names_step = names_checkpoint(reference)
    first_damage: DamagedCheckpoint | None = None
    for candidate in [step, *reversed(older)]:
        result: Any = None
        damage: DamagedCheckpoint | None = None
        try:
            result = read(candidate)
        except DamagedCheckpoint as error:
            damage = error
        # One process may read a damaged chunk that the others do not need.
        if np.all(multihost_utils.process_allgather(np.asarray(damage is None))):
            return result
        damage = damage or DamagedCheckpoint(
            f'{directory / str(candidate)} is damaged (another process cannot read it)'
        )
        first_damage = first_damage or damage
        if names_step:
            break
        has_older = bool(older) and candidate != older[0]
        if has_older and jax.process_index() == 0:
            print(f'{damage}: using the one before it', flush=True)
    assert first_damage is not None
    raise first_damage


def _explain_not_pretrained(directory: Path) -> str:
    """Returns the end of an error message, for a user who meant a pretrained model.

    The text explains why the directory is not one (see `cpt_jax.origin.pretrained`); it is '' if
    the directory has a config.json.
    """
    if not directory.is_dir():
        return f', nor is there such a directory{_explain_download(directory)}'
    if (directory / 'config.json').is_file():
        return ''
    gguf_files = sorted(directory.glob('*.gguf'))
    if gguf_files:
        return f'; to use a GGUF file in it, name the file: {gguf_files[0]}'
    return ', nor does it hold a pretrained model: no config.json, and no complete .bin of llama2.c'


def _explain_download(directory: Path) -> str:
    """Returns the command that downloads a model of the Hugging Face hub; '' if a missing directory
    cannot be the name of one.
    """
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(directory)) or directory.parent.exists():
        return ''
    target = f'models/{directory.name}'
    return (
        f'; a model of the Hugging Face hub has to be downloaded: hf download {directory} '
        f"--local-dir {target} --exclude 'onnx/*' 'openvino/*' '*.bin' '*.h5' '*.msgpack' (without "
        f"'*.bin' for a model that has no *.safetensors), then use {target}"
    )
