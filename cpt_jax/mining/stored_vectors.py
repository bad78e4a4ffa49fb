"""Vectors of a table of texts, in a directory that an interrupted program completes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.mining.progress import Progress
from cpt_jax.mining.text_table import TextTable
from cpt_jax.storage.vector_shards import VectorWriter, read_vectors
from cpt_jax.storage.vectors_meta import VectorsMeta

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder

# Vectors per file, and documents in a block of the search. At most one file is computed again after
# a kill. It does not depend on the devices, so that a program may resume on others.
SHARD_SIZE = 8_192


class StoredVectors(NamedTuple):
    """Vectors in shards.

    Attributes:
      shards: float32 [n, D] each, memory-mapped or in memory; all but the last have `shard_size`
        rows.
      shard_size: number of rows of a shard.
    """

    shards: list[np.ndarray]
    shard_size: int = SHARD_SIZE

    @property
    def size(self) -> int:
        """Number of vectors."""
        return sum(map(len, self.shards))

    def iterate_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (indices int64 [C], vectors float32 [C, D]) of each shard."""
        for number, shard_CxD in enumerate(self.shards):
            yield number * self.shard_size + np.arange(len(shard_CxD)), shard_CxD

    def take(self, indices_M: np.ndarray) -> np.ndarray:
        """Returns float32[M, D]: the vectors at some indices."""
        taken_MxD = np.empty((len(indices_M), self.shards[0].shape[1]), np.float32)
        shard_M = indices_M // self.shard_size
        for number in np.unique(shard_M):
            is_in_shard_M = shard_M == number
            rows = indices_M[is_in_shard_M] - number * self.shard_size
            taken_MxD[is_in_shard_M] = self.shards[number][rows]
        return taken_MxD


def store_vectors(
    directory: Path, table: TextTable, side: str, embedder: 'Embedder', embed: Embed
) -> StoredVectors:
    """Embeds the texts of a table into a directory, except those that it has already.

    Args:
      directory: the directory.
      table: the texts.
      side: 'x' for queries, 'y' for documents.
      embedder: the model.
      embed: function that embeds with the model, on all processes.

    Raises:
      UserError: the directory holds vectors of another model or of other texts.
    """
    meta = VectorsMeta(
        model=embedder.model_name,
        settings=embedder.settings,
        side=side,
        input='',
        fingerprint=table.fingerprint,
        texts=table.size,
        width=embedder.width,
        shard_size=SHARD_SIZE,
    )
    writer = VectorWriter(directory, meta)
    missing = list(writer.missing)
    total = sum(meta.get_shard_size(shard) for shard in missing)
    name = 'embedding queries' if side == 'x' else 'embedding documents'
    with Progress(name, total, 'text') as progress:
        for shard in missing:
            start = shard * SHARD_SIZE
            indices = range(start, start + meta.get_shard_size(shard))
            vectors_NxD = embed_texts(embed, table.read_texts(indices), side)
            writer.add([str(index) for index in indices], vectors_NxD)
            progress.update(len(indices))
    # The writer compared the checksums of the shards that it found.
    return StoredVectors(read_vectors(directory, verify=False).shards)
