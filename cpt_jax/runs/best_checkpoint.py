"""best.json of a run: for each task that was followed, the checkpoint with the best score; and that
checkpoint, kept.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically

_ABOUT = '_CHECKPOINT_METADATA'  # Orbax's, with the time of the save

Best = Mapping[str, Mapping[str, float]]


def write_best(run: Path, best: Best) -> None:
    write_atomically(RunDir(run).best_steps, json.dumps(best, indent=2) + '\n')


def find_best(run: Path, task: str, said: str) -> tuple[Path, int]:
    """The checkpoints' directory and the step of the best one by `task`; '': of the one task that
    was followed.

    Raises:
      UserError: nothing was followed, or not that task, or the checkpoint is gone; the message
        begins with `said`.
    """
    path = RunDir(run).best_steps
    try:
        best = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise UserError(f'{said}: no {path}: launch/evaluate.py --follow writes it') from None
    except ValueError as error:
        raise UserError(
            f'{said}: {path} is not JSON ({error}): launch/evaluate.py --follow writes it anew'
        ) from None
    if task not in best and (task or len(best) != 1):
        which = f'no scores of {task}' if task else 'say by which task'
        raise UserError(
            f'{said}: {which}; there are {", ".join(f"@best:{name}" for name in best) or "none"}'
        )
    step = int(best[task or next(iter(best))]['step'])
    for folder in (RunDir(run).best, RunDir(run).checkpoints):
        if (folder / str(step)).is_dir():
            return folder, step
    raise UserError(
        f'{said}: the checkpoint of step {step} is gone: checkpoint.keep_latest and keep_every '
        f'say which stay, --keep_best keeps it'
    )


def keep_best(run: Path, best: Best, held: Collection[int] = ()) -> list[int]:
    """Makes `run`/best/ hold the best checkpoints and no others; returns the steps of those that
    cannot be kept: they are gone.

    Files are linked, which costs nothing until the trainer lets go of its own, and copied where the
    file system has no links (gcsfuse).

    Args:
      run: its directory.
      best: as in best.json.
      held: checkpoints that are being scored, and stay as well, where files can be linked: one may
        turn out to be the best.
    """
    wanted, gone = {int(entry['step']) for entry in best.values()}, []
    for step in sorted({*wanted, *held}):
        kept, source = RunDir(run).best / str(step), RunDir(run).checkpoints / str(step)
        there = kept.is_dir() and not _another(source, kept)
        if (
            not there
            and not _copied(source, kept, _link_or_copy if step in wanted else os.link)
            and step in wanted
        ):
            gone.append(step)
    for path in RunDir(run).best.glob('*'):
        if path.name not in map(str, {*wanted, *held}):
            shutil.rmtree(path)
    return gone


def _another(source: Path, kept: Path) -> bool:
    """Whether the run has another checkpoint of that step now: it went back, or began anew. The
    file says when it was saved.
    """
    try:
        return (source / _ABOUT).read_bytes() != (kept / _ABOUT).read_bytes()
    except FileNotFoundError:  # the trainer's own is deleted
        return False


def _copied(source: Path, target: Path, copy: Callable[[str, str], object]) -> bool:
    """False where the source is being deleted meanwhile, or is not there, or its files cannot be
    copied.
    """
    part = target.with_name(f'{target.name}.part')
    shutil.rmtree(part, ignore_errors=True)  # of a program that was killed
    try:
        shutil.copytree(source, part, copy_function=copy)
        whole = _files(part) == _files(source)
    # copytree collects in an Error what it could not copy
    except (FileNotFoundError, shutil.Error):
        whole = False
    if whole:
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    shutil.rmtree(part, ignore_errors=True)
    return whole


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob('*')}
