"""A cache on disk for the embeddings of a task, which is deleted when the task is done.

It lets an evaluation that was killed resume where it stopped.
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
from cpt_jax.storage.atomic_write import open_atomically
from cpt_jax.storage.cache import read_arrays

TEXTS_PER_FILE = 4096


def digest_json(value: object) -> str:
    """Returns 32 hex digits, a hash of a JSON-serializable value."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class EmbeddingCache:
    """Settings of the cache.

    Attributes:
      folder: folder of the cached embeddings; None disables the cache.
      shard: number of texts per file. The embedder is fastest if this is `Embedder.window`.
      keep: whether to keep the embeddings of a task when it is done.
    """

    folder: Path | None = None
    shard: int = TEXTS_PER_FILE
    keep: bool = False

    def wrap(self, embed: Embed, model: str, settings: Mapping) -> 'CachingEmbed':
        """Returns `embed` with a cache.

        Each combination of model and settings has its own folder, so embeddings of another model or
        of other settings are never returned.
        """
        name = f'{model.replace("/", "-")}-{digest_json(settings)}'
        return CachingEmbed(embed, self, self.folder and self.folder / name)


class CachingEmbed:
    """An embedding function that caches its results on disk while a task runs.

    All tasks of a model use the same object, because they may share embeddings.

    A file is named by a hash of its side and texts, so a task may embed its texts in any order. The
    embeddings of a shard depend only on its texts, so a resumed evaluation has bitwise the same
    results as one that was not interrupted.
    """

    def __init__(self, embed: Embed, cache: EmbeddingCache, model_folder: Path | None):
        self._embed = embed
        self._cache = cache
        self._model_folder = model_folder
        self._folder: Path | None = None  # folder of the current task
        self._written: set[Path] = set()  # files written by this program

    @contextmanager
    def keep_during(self, task: str) -> Iterator[None]:
        """Caches embeddings during the block. Removes them at its end, unless it raises.

        Only one program at a time may run a task of a model.
        """
        folder = self._folder = self._model_folder and self._model_folder / task.replace('/', '-')
        yield
        if folder and not self._cache.keep:
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty_folder(folder.parent)
            _remove_empty_folder(folder.parent.parent)
        self._folder = None

    def __call__(self, texts: Sequence[str], side: str) -> np.ndarray:
        if len(texts) and self._folder:
            return np.concatenate([*self.embed_shards(texts, side)])
        return self._embed(texts, side)

    def embed_shards(self, texts: Sequence[str], side: str) -> Iterator[np.ndarray]:
        """Yields the embeddings of the texts in order, float32[n, D] for one shard at a time."""
        reused = 0
        for start in range(0, len(texts), self._cache.shard):
            shard = texts[start : start + self._cache.shard]
            path = self._folder and self._folder / f'{digest_json([side, *shard])}.npz'
            vectors_NxD = _read_shard(path, len(shard)) if path else None
            if vectors_NxD is not None and path not in self._written:
                reused += len(shard)
            if vectors_NxD is None:
                vectors_NxD = np.asarray(self._embed(shard, side), np.float32)
                self._write_shard(path, vectors_NxD)
            yield vectors_NxD
        if reused:
            tqdm.write(f'{reused:,} of {len(texts):,} embeddings were read from the cache')

    def _write_shard(self, path: Path | None, vectors_NxD: np.ndarray) -> None:
        """Writes a shard. If the disk is full, the cache is disabled and the evaluation continues.

        Embeddings that are not finite are not cached: the task will report them.
        """
        if not path or not np.isfinite(vectors_NxD).all():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomically(path) as file:
                np.savez(file, vectors_NxD)  # unlike a .npy file, it has a CRC-32
            self._written.add(path)
        except OSError as error:
            logging.warning(
                '%s: embeddings cannot be cached (%s): if this evaluation is killed, the task '
                'starts from the beginning',
                self._folder,
                error,
            )
            self._folder = None


def _remove_empty_folder(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # another task is using it
        pass


def _read_shard(path: Path, texts: int) -> np.ndarray | None:
    """Returns float32[texts, D], or None if the file is missing or damaged."""
    vectors_NxD = (read_arrays(path) or {}).get('arr_0')
    if vectors_NxD is None or vectors_NxD.ndim != 2 or len(vectors_NxD) != texts:
        return None
    return vectors_NxD if vectors_NxD.dtype == np.float32 else None
