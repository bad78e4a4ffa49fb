"""Vectors that wait on the disk for the end of their task, so that an evaluation that is killed
goes on where it was.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cpt_jax.embed.function import Embed
from cpt_jax.storage.atomic_write import replacing

SHARD = 4096  # texts of a file


def digest_json(value: object) -> str:
    """32 hex digits of what JSON can say."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class EmbeddingCache:
    """Where vectors are kept.

    Attributes:
      folder: None keeps none.
      shard: texts of a file; of as many the embedder should be at its fastest (`Embedder.window`).
      keep: do not remove the vectors of a task at its end.
    """

    folder: Path | None = None
    shard: int = SHARD
    keep: bool = False

    def of_model(self, embed: Embed, model: str, settings: Mapping) -> 'KeptVectors':
        """`embed` with a memory; the vectors of another model, or of this one with other settings,
        are not found.
        """
        return KeptVectors(
            embed,
            self,
            self.folder and self.folder / f'{model.replace("/", "-")}-{digest_json(settings)}',
        )


class KeptVectors:
    """An embedding function that keeps, while a task runs, what it gave. One object for all tasks
    of a model: they may share vectors.

    A file is named by the side and the texts of its vectors, so that texts may be asked for in any
    pieces and order. What a shard's vectors are depends on nothing but its texts, so an evaluation
    that was killed ends with the very bits of one that was not.
    """

    def __init__(self, embed: Embed, cache: EmbeddingCache, of_model: Path | None):
        self._embed, self._cache, self._of_model = embed, cache, of_model
        self._folder: Path | None = None
        self._made: set[Path] = set()  # files of this program

    @contextmanager
    def during(self, task: str) -> Iterator[None]:
        """Keeps vectors until the end of the block, and after it where an exception ends it. One
        program at a time for a model and task.
        """
        folder = self._folder = self._of_model and self._of_model / task.replace('/', '-')
        yield
        if folder and not self._cache.keep:
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty(folder.parent)
            _remove_empty(folder.parent.parent)
        self._folder = None

    def __call__(self, texts: Sequence[str], side: str) -> np.ndarray:
        return (
            np.concatenate([*self.blocks(texts, side)])
            if len(texts) and self._folder
            else self._embed(texts, side)
        )

    def blocks(self, texts: Sequence[str], side: str) -> Iterator[np.ndarray]:
        """The vectors of all texts in their order, float32[n, D] of one shard at a time."""
        there = 0
        for start in range(0, len(texts), self._cache.shard):
            piece = texts[start : start + self._cache.shard]
            path = self._folder and self._folder / f'{digest_json([side, *piece])}.npy'
            vectors_NxD = _read(path, len(piece)) if path else None
            if vectors_NxD is not None and path not in self._made:
                there += len(piece)
            if vectors_NxD is None:
                vectors_NxD = np.asarray(self._embed(piece, side), np.float32)
                self._write(path, vectors_NxD)
            yield vectors_NxD
        if there:
            tqdm.write(f'{there:,} of {len(texts):,} texts had their vectors from an earlier start')

    def _write(self, path: Path | None, vectors_NxD: np.ndarray) -> None:
        """A disk that is full costs the vectors, and not the evaluation; what is not finite is no
        vector, and its task will say so.
        """
        if not path or not np.isfinite(vectors_NxD).all():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.save(file, vectors_NxD)
            self._made.add(path)
        except OSError as error:
            logging.warning(
                '%s: vectors cannot be kept (%s): a killed evaluation would begin the task anew',
                self._folder,
                error,
            )
            self._folder = None


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # another task is at work there
        pass


def _read(path: Path, texts: int) -> np.ndarray | None:
    """The vectors of so many texts; None where there is no such file, or one that a crash of the
    machine cut short.
    """
    try:
        vectors_NxD = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return (
        vectors_NxD
        if vectors_NxD.ndim == 2 and len(vectors_NxD) == texts and vectors_NxD.dtype == np.float32
        else None
    )
