"""The metadata of a directory of vectors."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import RemoteFiles, fetch
from cpt_jax.storage.vector_codes import count_code_columns

META = 'meta.json'
# Setting of a pretrained model with the digest of its files.
WEIGHTS = 'weights'


@dataclasses.dataclass(frozen=True)
class VectorsMeta:
    """Metadata of a directory of vectors: the model and the texts they were computed from.

    Attributes:
      model: `model_name` of the embedder.
      settings: `settings` of the embedder.
      side: 'x' for queries, 'y' for the texts to be found.
      input: path of the texts, for information only: a resumed program may read them elsewhere.
      fingerprint: digest of all ids and texts, in order.
      texts: number of texts.
      width: embedding dimension.
      shard_size: number of texts per shard; the last shard may have fewer.
      precision: 'float32', or the kind of the codes: 'int8' or 'binary'.
      calibration: what the ranges of int8 codes were computed from; '' for other precisions.
    """

    model: str
    settings: Mapping[str, Any]
    side: str
    input: str
    fingerprint: str
    texts: int
    width: int
    shard_size: int
    precision: str = 'float32'
    calibration: str = ''

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the arrays in the shards."""
        return np.dtype(np.float32 if self.precision == 'float32' else np.int8)

    @property
    def columns(self) -> int:
        """Number of columns of the arrays in the shards."""
        return count_code_columns(self.width, self.precision)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.texts // self.shard_size)

    def get_shard_size(self, shard: int) -> int:
        """Returns the number of texts in a shard."""
        return min(self.shard_size, self.texts - shard * self.shard_size)

    def get_shard_paths(self, directory: Path, shard: int) -> tuple[Path, Path]:
        """Returns the paths of a shard's vectors and ids."""
        number = f'{shard:05d}-of-{self.shards:05d}'
        return directory / f'vectors-{number}.npy', directory / f'ids-{number}.txt'


def read_meta(directory: Path | str) -> VectorsMeta:
    """Returns the metadata of a directory of vectors, without checking the vectors. From a bucket,
    no other file is copied.

    Raises:
      UserError: the directory is not one of vectors.
    """
    if is_remote(directory):
        files = RemoteFiles.find(str(directory), 'vectors')
        return load_meta(files.select(lambda name: name == META).copy())
    return load_meta(fetch(directory, 'vectors'))


def load_meta(directory: Path) -> VectorsMeta:
    """Returns the metadata of a local directory, or of one in a bucket that is read directly.

    Raises:
      UserError: the directory is not one of vectors.
    """
    path = directory / META
    try:
        return VectorsMeta(**json.loads(path.read_text('utf-8')))
    except FileNotFoundError:
        raise UserError(
            f'{directory}: no {META}: give a directory that launch/embed.py wrote'
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{path}: cannot be read ({error}): delete the directory, and embed again'
        ) from None


def check_same_vectors(directory: Path, stored: VectorsMeta, expected: VectorsMeta) -> None:
    """Raises UserError if any metadata except `input` differ; the fingerprint covers the texts."""
    before = dataclasses.asdict(stored)
    now = json.loads(json.dumps(dataclasses.asdict(expected)))  # tuples become lists
    if WEIGHTS not in before['settings']:  # earlier versions did not store it
        now['settings'].pop(WEIGHTS, None)
    differing = [key for key in now if key != 'input' and before[key] != now[key]]
    if differing:
        differences = ', '.join(
            f'{key}={before[key]}'
            if key in ('model', 'side', 'shard_size', 'precision', 'calibration')
            else f'other {key}'
            for key in differing
        )
        raise UserError(
            f'{directory}: holds other vectors ({differences}): choose another directory, or '
            f'delete it'
        )
