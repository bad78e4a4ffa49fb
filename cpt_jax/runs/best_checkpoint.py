"""The best checkpoints of a run, by held-out score and by task.

Training writes best_heldout.json, and keeps that checkpoint. launch/evaluate.py --follow scores the
checkpoints by tasks: best.json names one per task, and best/ holds copies of them.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.bucket import get_generation
from cpt_jax.storage.json_checks import is_integer
from cpt_jax.storage.paths import is_on_bucket

# The metadata file that Orbax writes into each checkpoint; it records when it was saved.
_METADATA_FILE = '_CHECKPOINT_METADATA'
# The file that Orbax writes last.
_COMMIT_FILE = 'commit_success.txt'

# The content of best.json: task -> {'step': ..., 'score': ...}.
Best = Mapping[str, Mapping[str, float]]
# Name of the held-out pairs among the tasks, in RUN@best:heldout.
HELDOUT = 'heldout'


def is_complete(checkpoint: Path) -> bool:
    """Returns whether the folder of a checkpoint has been written to its end."""
    return (checkpoint / _COMMIT_FILE).exists()


def identify(checkpoint: Path) -> tuple[int, ...]:
    """Returns numbers that differ between two checkpoints that were saved at one path."""
    if is_on_bucket(checkpoint):
        return (get_generation(checkpoint / _COMMIT_FILE),)
    folder = checkpoint.stat()
    return folder.st_ino, folder.st_mtime_ns


def write_best(run: Path, best: Best) -> None:
    """Writes best.json into a run's directory."""
    write_atomically(RunDir(run).best_steps, json.dumps(best, indent=2) + '\n')


def write_best_heldout(run: Path, step: int, score: float) -> None:
    """Writes best_heldout.json into a run's directory."""
    entry = {'step': step, 'score': score}
    write_atomically(RunDir(run).best_heldout, json.dumps(entry) + '\n')


def find_best(run: Path, task: str, prefix: str) -> tuple[Path, int]:
    """Returns the directory and the step of the best checkpoint.

    Args:
      run: the run's directory.
      task: task whose scores decide; '' is the held-out score if training kept its best
        checkpoint, else the only task with scores.
      prefix: beginning of the error messages.

    Raises:
      UserError: there are no such scores, a file is damaged, or the checkpoint is deleted.
    """
    best = dict(_read_best(RunDir(run).best_steps, prefix))
    if heldout := _read_best(RunDir(run).best_heldout, prefix):
        best[HELDOUT] = heldout
        task = task or HELDOUT
    if not best:
        raise UserError(
            f'{prefix}: the best checkpoint is not known: launch/evaluate.py --follow finds it by '
            f'a task, training with checkpoint.keep_best=True by the held-out pairs'
        )
    if task not in best and (task or len(best) != 1):
        problem = f'no scores of {task}' if task else 'name the task'
        choices = ', '.join(f'@best:{name}' for name in best) or 'none'
        raise UserError(f'{prefix}: {problem}; there are {choices}')
    step = int(best[task or next(iter(best))]['step'])
    for folder in (RunDir(run).best_checkpoints, RunDir(run).checkpoints):
        if is_complete(folder / str(step)):
            return folder, step
    raise UserError(
        f'{prefix}: the checkpoint of step {step} is gone: training keeps those of '
        f'checkpoint.keep_latest and keep_every; checkpoint.keep_best or launch/evaluate.py '
        f'--follow --keep_best keeps the best'
    )


def _read_best(path: Path, prefix: str) -> dict[str, Any]:
    """Returns the content of a file, {} if there is none. Raises UserError if it is damaged."""
    try:
        content = json.loads(path.read_text('utf-8'))
        problem = '' if isinstance(content, dict) else 'no object'
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        problem = f'not JSON ({error})'
    if not problem:
        entries = [content] if path.name == RunDir(path).best_heldout.name else content.values()
        if all(_is_entry(entry) for entry in entries):
            return content
        problem = 'not a step and a score for each name'
    raise UserError(
        f'{prefix}: {path} is {problem}: delete it; launch/evaluate.py --follow, or training, '
        f'writes it again'
    )


def _is_entry(value: object) -> bool:
    """Whether a value has an integer step."""
    return isinstance(value, dict) and is_integer(value.get('step'))


def keep_best(run: Path, best: Best, held: Collection[int] = ()) -> list[int]:
    """Copies the best checkpoints into `run`/best/ and deletes the others there.

    The copies are hard links, which take no space until training deletes the original, or real
    copies on file systems without hard links (gcsfuse).

    Args:
      run: the run's directory.
      best: the best checkpoints, as in best.json.
      held: steps of checkpoints that are being scored; one of them may become the best. They are
        copied too, but only if the file system has hard links.

    Returns:
      The steps in `best` whose checkpoint is deleted.
    """
    wanted = {int(entry['step']) for entry in best.values()}
    kept = wanted | set(held)
    gone = []
    for step in sorted(kept):
        source = RunDir(run).checkpoints / str(step)
        target = RunDir(run).best_checkpoints / str(step)
        if target.is_dir() and not _was_replaced(source, target):
            continue
        if is_on_bucket(run):
            is_copied = step in wanted and _copy_objects(source, target)
        else:
            is_copied = _try_copy(source, target, _link_or_copy if step in wanted else os.link)
        if step in wanted and not is_copied:
            gone.append(step)
    folder = RunDir(run).best_checkpoints
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in map(str, kept):
            epath.Path(path).rmtree()
    return gone


def _was_replaced(source: Path, target: Path) -> bool:
    """Returns whether the run has saved another checkpoint of this step since `target` was copied.

    That happens if the run resumed from an earlier step or started again. The metadata files differ
    then, because they contain the time of the save.
    """
    try:
        return (source / _METADATA_FILE).read_bytes() != (target / _METADATA_FILE).read_bytes()
    except FileNotFoundError:  # training has deleted the original
        return False


def _copy_objects(source: Path, target: Path) -> bool:
    """Copies a checkpoint on a bucket. The file that marks it as complete comes last.

    Returns:
      False if the source is missing or was deleted during the copy.
    """
    if not is_complete(source):
        return False
    try:
        for path in _find_objects(source):
            if path != source / _COMMIT_FILE:
                _copy_object(path, target / path.relative_to(source))
        _copy_object(source / _COMMIT_FILE, target / _COMMIT_FILE)
    except FileNotFoundError:
        return False
    return True


def _find_objects(folder: Path) -> Iterator[Path]:
    """Yields all objects below a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _find_objects(path)
        else:
            yield path


def _copy_object(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    epath.Path(source).copy(target, overwrite=True)


def _try_copy(source: Path, target: Path, copy: Callable[[str, str], object]) -> bool:
    """Copies a checkpoint with `copy`, file by file.

    Returns:
      False if the source is missing or was deleted during the copy, or a file cannot be copied.
    """
    part = target.with_name(f'{target.name}.part')
    shutil.rmtree(part, ignore_errors=True)  # left by a program that was killed
    try:
        shutil.copytree(source, part, copy_function=copy)
        is_whole = _list_files(part) == _list_files(source)
    # shutil.Error: copytree could not copy some of the files
    except (FileNotFoundError, shutil.Error):
        is_whole = False
    if is_whole:
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    shutil.rmtree(part, ignore_errors=True)
    return is_whole


def _link_or_copy(source: str, target: str) -> None:
    """Makes a hard link, or a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def _list_files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob('*')}
