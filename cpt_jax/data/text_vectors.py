"""Vectors of another model, looked up by text: a guide's or a teacher's."""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cpt_jax.data.pairs import compute_text_key, digest_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.vector_shards import read_text_keys, read_vectors
from cpt_jax.storage.vectors_meta import WEIGHTS, VectorsMeta, read_meta
from cpt_jax.text.tokenizer import SIDES, Side

T = TypeVar('T')
# Settings of meta.json that differ between models. Maximum lengths and prompts may differ by side.
_MODEL_SETTINGS = WEIGHTS, 'saved', 'step', 'pooling'
NO_VECTOR = -1  # row of an absent text


class TextVectors:
    """The vectors in directories that launch/embed.py wrote.

    Attributes:
      key: config key with the directories, for messages.
      width: embedding dimension.
      fingerprint: digest of the model, its settings and the texts, whatever the order of the
        directories.
    """

    def __init__(self, key: str, directories: str):
        """Opens the directories; the vectors stay on disk.

        Args:
          key: config key with the directories.
          directories: the directories, separated by commas.

        Raises:
          UserError: a directory is not one of float32 vectors, has no text keys, or is of another
            model than the others.
        """
        self.key = key
        names = split_directories(directories)
        opened = [explain(key, read_vectors, name) for name in names]
        metas = [vectors.meta for vectors in opened]
        _check_same_model(key, directories, metas)
        self._directories = directories
        self.width = metas[0].width
        self.fingerprint = _compute_fingerprint(metas)
        self._shards = [shard for vectors in opened for shard in vectors.shards]
        if any(shard.dtype != np.float32 for shard in self._shards):
            raise UserError(
                f'{key}={directories}: holds codes instead of float32 vectors: embed the texts '
                f'again without --precision'
            )
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        keys = [
            explain(key, read_text_keys, name, meta)
            for name, meta in zip(names, metas, strict=True)
        ]
        starts = np.cumsum([0, *map(len, keys)])
        self._tables = {
            side: _make_table(_order_directories(metas, side), keys, starts) for side in SIDES
        }

    def find(self, text: str, side: Side) -> int:
        """Returns the row of a text's vector, NO_VECTOR if it has none."""
        keys_N, rows_N = self._tables[side]
        key = np.uint64(compute_text_key(text))
        position = int(np.searchsorted(keys_N, key))
        if position == len(keys_N) or keys_N[position] != key:
            return NO_VECTOR
        return int(rows_N[position])

    def find_or_refuse(self, text: str, side: Side, where: str) -> int:
        """Returns the row of a text's vector.

        Args:
          text: a text without its prompt.
          side: its side.
          where: source and id of its pair, for the message.

        Raises:
          UserError: the text has no vector.
        """
        row = self.find(text, side)
        if row == NO_VECTOR:
            raise UserError(
                f'{where}: its {side} {text[:40]!r} has no vector in {self.key}='
                f'{self._directories}: embed all texts of the source with launch/embed.py, and '
                f'name all directories, separated by commas'
            )
        return row

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32[..., W]: the vectors of rows, 0 for NO_VECTOR."""
        flat_N = rows.reshape(-1)
        vectors_NxW = np.zeros((len(flat_N), self.width), np.float32)
        shard_N = np.searchsorted(self._starts, flat_N, side='right') - 1
        for shard in np.unique(shard_N[flat_N != NO_VECTOR]).tolist():
            chosen_N = shard_N == shard
            vectors_NxW[chosen_N] = self._shards[shard][flat_N[chosen_N] - self._starts[shard]]
        return vectors_NxW.reshape(*rows.shape, self.width)


def split_directories(directories: str) -> list[str]:
    """Returns the directories of a config value."""
    return [directory.strip() for directory in directories.split(',') if directory.strip()]


def read_width(key: str, directories: str) -> int:
    """Returns the embedding dimension of vectors without opening them; 0 for ''.

    Args:
      key: config key with the directories.
      directories: the directories, separated by commas.
    """
    found = split_directories(directories)
    return explain(key, read_meta, found[0]).width if found else 0


def explain(key: str, read: Callable[..., T], *arguments: object) -> T:
    """Returns the result of a function; its UserError gets the name of a config key."""
    try:
        return read(*arguments)
    except UserError as error:
        raise UserError(f'{key}: {error}') from None


def _compute_fingerprint(metas: Sequence[VectorsMeta]) -> str:
    described = [
        json.dumps([meta.model, meta.settings, meta.side, meta.fingerprint], sort_keys=True)
        for meta in metas
    ]
    return digest_texts(*sorted(described))


def _check_same_model(key: str, directories: str, metas: Sequence[VectorsMeta]) -> None:
    if not metas:
        raise UserError(f'{key}={directories!r}: names no directory')
    models = sorted({f'{meta.model} with {meta.width} dimensions' for meta in metas})
    if len(models) > 1:
        raise UserError(
            f'{key}={directories}: are vectors of different models ({", ".join(models)}): embed '
            f'all texts with one'
        )
    for name in _MODEL_SETTINGS:
        # Directories of earlier versions have no fingerprint of the weights.
        found = {str(meta.settings[name]) for meta in metas if name in meta.settings}
        if len(found) > 1:
            raise UserError(
                f'{key}={directories}: are vectors of different models named {metas[0].model} '
                f'({name}: {" and ".join(sorted(found))}): embed all texts with one'
            )


def _order_directories(metas: Sequence[VectorsMeta], side: Side) -> list[int]:
    """Returns the indices of the directories, those of a side first: a text that is on both sides
    has the vector of its own.
    """
    same = [i for i, meta in enumerate(metas) if meta.side == side]
    return same + [i for i in range(len(metas)) if i not in same]


def _make_table(
    order: Sequence[int], keys: Sequence[np.ndarray], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint64[N], the ascending distinct keys of all texts, and int64[N], their rows.

    Args:
      order: indices of the directories, the preferred ones first.
      keys: uint64[n], the keys of the texts of each directory.
      starts: row of the first text of each directory.
    """
    ordered_N = np.concatenate([keys[i] for i in order])
    rows_N = np.concatenate([starts[i] + np.arange(len(keys[i])) for i in order])
    distinct_N, first_N = np.unique(ordered_N, return_index=True)
    return distinct_N, rows_N[first_N]
