"""Consistency filter: a pair stays if a model ranks its y among the best for its x, in a random
sample of the y of all pairs (Wang et al. 2022, arXiv 2212.03533, section 3.1).
"""

import functools
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np

from cpt_jax.data.pairs import compute_content_id
from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.prepare.examples import SPLITS, decode_example
from cpt_jax.prepare.record_files import open_records, read_records
from cpt_jax.prepare.work_folder import WorkFolder, save_array
from cpt_jax.storage.json_files import read_json_file, write_json

SAMPLE = 'sample'
CONSISTENT = 'consistent'
_PAIRS_AT_ONCE = 4096
_SEED = 0


@functools.cache
def load_model(reference: str) -> Embed:
    """Returns the embedding function of a model reference; it is loaded once per process.

    Raises:
      UserError: the model cannot be loaded.
    """
    from cpt_jax.embed.load import load_embedder

    return cast('Embed', load_embedder(reference))


def embed_sample(folder: WorkFolder, tasks: int, size: int, embed: Embed) -> None:
    """Stores the vectors of a random sample of the y of all pairs.

    Args:
      folder: work folder.
      tasks: number of tasks.
      size: maximum size of the sample.
      embed: the model.
    """
    counts = [
        read_json_file(folder.get_path('shards', rank, '.json'))['counts']['pairs']['train']
        for rank in range(tasks)
    ]
    total = sum(counts)
    random = np.random.default_rng(_SEED)
    chosen = np.sort(random.choice(total, min(size, total), replace=False))
    starts = np.cumsum([0, *counts])
    texts: list[str] = []
    for rank in range(tasks):
        own = chosen[(chosen >= starts[rank]) & (chosen < starts[rank + 1])] - starts[rank]
        records = read_records(folder.get_path('shards', rank, '-train'), own.tolist())
        texts += [decode_example(record)['y'][0] for record in records]
    ids = np.array([compute_content_id(text) for text in texts], np.int64)
    save_array(folder.get_path(SAMPLE, 0, '-ids.npy'), ids)
    save_array(folder.get_path(SAMPLE, 0, '.npy'), embed_texts(embed, texts, 'y'))


def filter_shard(folder: WorkFolder, rank: int, top_k: int, embed: Embed) -> None:
    """Writes the consistent pairs of a task's shards, with the ranks of all pairs.

    Args:
      folder: work folder.
      rank: index of the task.
      top_k: largest rank of a pair that stays, from 1.
      embed: the model.
    """
    sample_SxD = np.load(folder.get_path(SAMPLE, 0, '.npy'))
    ids_S = np.load(folder.get_path(SAMPLE, 0, '-ids.npy'))
    stored = read_json_file(folder.get_path('shards', rank, '.json'))
    counts = stored['counts']
    for split in SPLITS:
        sizes = np.load(folder.get_path('shards', rank, f'-{split}.npy'))
        ranks: list[np.ndarray] = []
        contents = blake2b(digest_size=16)
        size = 0
        path = folder.get_path('shards', rank, f'-{split}')
        with open_records(folder.get_path(CONSISTENT, rank, f'-{split}')) as output:
            for records in _iterate_blocks(path, int(sizes.sum())):
                found = rank_pairs(records, sample_SxD, ids_S, embed)
                ranks.append(found)
                for record, place in zip(records, found.tolist(), strict=True):
                    if place <= top_k:
                        output.write(record)
                        contents.update(record)
                        size += len(record)
        ranks_N = np.concatenate([np.zeros(0, np.int64), *ranks])
        kept_N = ranks_N <= top_k
        documents_N = np.repeat(np.arange(len(sizes)), sizes)
        kept_sizes = np.bincount(documents_N[kept_N], minlength=len(sizes))
        kept_sizes = kept_sizes[kept_sizes > 0]
        save_array(folder.get_path(CONSISTENT, rank, f'-{split}.npy'), kept_sizes)
        save_array(folder.get_path(CONSISTENT, rank, f'-{split}-ranks.npy'), ranks_N)
        stored['digests'][split] = [contents.hexdigest(), size]
        counts['pairs'][split] = int(kept_sizes.sum())
        counts['documents'][split] = len(kept_sizes)
        lost = int((~kept_N).sum())
        counts['dropped']['inconsistent'] = counts['dropped'].get('inconsistent', 0) + lost
    write_json(folder.get_path(CONSISTENT, rank, '.json'), stored)


def _iterate_blocks(path: Path, pairs: int) -> Iterator[list[bytes]]:
    for start in range(0, pairs, _PAIRS_AT_ONCE):
        yield read_records(path, range(start, min(start + _PAIRS_AT_ONCE, pairs)))


def rank_pairs(
    records: Sequence[bytes], sample_SxD: np.ndarray, ids_S: np.ndarray, embed: Embed
) -> np.ndarray:
    """Returns int64[n]: 1 plus the number of sampled y that are nearer to x than the pair's own y.

    Sampled texts that equal the pair's y do not count.

    Args:
      records: examples of the pairs.
      sample_SxD: float32, vectors of the sample.
      ids_S: content ids of the sample.
      embed: the model.
    """
    examples = [decode_example(record) for record in records]
    x = [example['x'][0] for example in examples]
    y = [example['y'][0] for example in examples]
    x_NxD = embed_texts(embed, x, 'x')
    y_NxD = embed_texts(embed, y, 'y')
    own_N = (x_NxD * y_NxD).sum(-1)
    nearer_NxS = x_NxD @ sample_SxD.T > own_N[:, None]
    ids_N = np.array([compute_content_id(text) for text in y], np.int64)
    nearer_NxS &= ids_S != ids_N[:, None]
    return 1 + nearer_NxS.sum(-1)


def summarize_ranks(folder: WorkFolder, tasks: int) -> dict[str, int]:
    """Returns the histogram of the ranks of all pairs: {'1': ..., '2': ..., '3-4': ..., ...}."""
    counts: dict[str, int] = {}
    for rank in range(tasks):
        for split in SPLITS:
            ranks_N = np.load(folder.get_path(CONSISTENT, rank, f'-{split}-ranks.npy'))
            bins, numbers = np.unique(_get_bins(ranks_N), return_counts=True)
            for exponent, number in zip(bins.tolist(), numbers.tolist(), strict=True):
                name = _name_bin(exponent)
                counts[name] = counts.get(name, 0) + number
    return dict(sorted(counts.items(), key=lambda item: int(item[0].partition('-')[0])))


def _get_bins(ranks_N: np.ndarray) -> np.ndarray:
    """Returns e for the ranks from 2**(e - 1) + 1 to 2**e."""
    return np.ceil(np.log2(ranks_N)).astype(np.int64)


def _name_bin(exponent: int) -> str:
    if exponent < 2:
        return str(1 << exponent)
    return f'{(1 << (exponent - 1)) + 1}-{1 << exponent}'
