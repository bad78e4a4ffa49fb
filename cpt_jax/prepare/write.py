"""Last stage: reads a task again, makes the pairs of the items that are kept, and writes them."""

import dataclasses
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.data.pairs import hash_to_unit_interval
from cpt_jax.prepare.counts import Counts
from cpt_jax.prepare.decontamination import Decontaminator, load_test_texts
from cpt_jax.prepare.document import Document, Dropped, TextPair, Unreadable
from cpt_jax.prepare.duplicates import REPEATED
from cpt_jax.prepare.examples import SPLITS, encode_example
from cpt_jax.prepare.items import iterate_items
from cpt_jax.prepare.keyed_items import load_items
from cpt_jax.prepare.near_duplicates import NEAR
from cpt_jax.prepare.plan import Preparation
from cpt_jax.prepare.record_files import open_records
from cpt_jax.prepare.work_folder import WorkFolder, save_array
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file, write_json

# Reason of a dropped hard negative. Its pair stays.
CONTAMINATED_NEGATIVE = 'contaminated hard negative'


def get_benchmark_path(folder: WorkFolder) -> Path:
    """Returns the path of the windows of the test texts."""
    return folder.get_path('benchmarks', 0, '.npz')


@dataclasses.dataclass
class Shard:
    """What a task writes into a split.

    Attributes:
      records: writer of the examples.
      contents: digest of the examples.
      sizes: number of pairs of each document.
      size: bytes of the examples.
    """

    records: Any
    contents: Any = dataclasses.field(default_factory=lambda: blake2b(digest_size=16))
    sizes: list[int] = dataclasses.field(default_factory=list)
    size: int = 0

    def write(self, examples: list[bytes]) -> None:
        """Writes the pairs of a document."""
        for example in examples:
            self.records.write(example)
            self.contents.update(example)
            self.size += len(example)
        self.sizes.append(len(examples))


def write_task(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    """Writes the pairs of a task.

    Writes a shard of each split with `sizes`, the number of pairs of each document, and the counts.

    Args:
      plan: the plan.
      folder: work folder.
      rank: index of the task.

    Raises:
      UserError: the files have changed since they were judged.
    """
    _check_unchanged(plan, folder, rank)
    source = plan.tasks[rank].source
    counts = Counts()
    digests = {}
    cleaner = None
    if plan.decontamination.data_dir:
        cleaner = Decontaminator(load_test_texts(get_benchmark_path(folder)))
    with (
        open_records(folder.get_path('shards', rank, '-train')) as train,
        open_records(folder.get_path('shards', rank, '-test')) as test,
    ):
        shards = {'train': Shard(train), 'test': Shard(test)}
        for document, pairs in _iterate_kept(plan, folder, rank, counts):
            group = pairs[0].fields.get('group') or document.identity
            is_heldout = hash_to_unit_interval(f'{source}/{group}') < plan.output.holdout
            examples = []
            for i, pair in enumerate(pairs):
                name = f'{document.identity}:{i}'
                if cleaner and cleaner.is_contaminated(pair, f'{source} {name}'):
                    counts.dropped['contaminated'] += 1
                    continue
                if cleaner:
                    before = len(pair.negatives)
                    pair = cleaner.remove_negatives(pair, f'{source} {name}')
                    counts.dropped[CONTAMINATED_NEGATIVE] += before - len(pair.negatives)
                examples.append(encode_example(pair, name, source, plan.output.fields))
            # Unrelated pairs of a document may be in one batch: each counts as a document.
            is_unrelated = plan.sources[source].unit == 'y'
            for part in [[example] for example in examples] if is_unrelated else [examples]:
                if part:
                    shards[SPLITS[is_heldout]].write(part)
    for split, shard in shards.items():
        counts.documents[split] = len(shard.sizes)
        counts.pairs[split] = sum(shard.sizes)
        digests[split] = [shard.contents.hexdigest(), shard.size]
        save_array(folder.get_path('shards', rank, f'-{split}.npy'), np.array(shard.sizes, int))
    found = cleaner.found if cleaner else {}
    stored = {'counts': counts.to_json(), 'digests': digests, 'contamination': found}
    write_json(folder.get_path('shards', rank, '.json'), stored)


def _check_unchanged(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    """Raises UserError if a file of a task was changed after the first stage began to read it."""
    judged = read_json_file(folder.get_path('judged', rank, '.json'))
    if plan.tasks[rank].digest_files() != judged['states']:
        raise _make_changed_error(plan, folder, rank)


def _make_changed_error(plan: Preparation, folder: WorkFolder, rank: int) -> UserError:
    first, *others = plan.tasks[rank].files
    what = f'{first.path} or one of {len(others):,} files with it' if others else first.path
    return UserError(
        f'{what} has changed since this preparation began: remove {folder.output} and start again'
    )


def _iterate_kept(
    plan: Preparation, folder: WorkFolder, rank: int, counts: Counts
) -> Iterator[tuple[Document, list[TextPair]]]:
    """Yields the documents of a task that are kept, with their pairs, and counts the others."""
    task = plan.tasks[rank]
    rules = plan.sources[task.source]
    passes = np.load(folder.get_path('judged', rank, '.npy'))
    keeps = passes.copy()
    if plan.duplicates.exact:
        keeps[load_items(folder, REPEATED, rank, plan.partitions)] = False
    counts.dropped['duplicate'] += int(passes.sum() - keeps.sum())
    if plan.duplicates.near:
        before = int(keeps.sum())
        keeps[load_items(folder, NEAR, rank, 1)] = False
        counts.dropped['near duplicate'] += before - int(keeps.sum())
    index = -1
    last: tuple[Document, list[TextPair]] | None = None
    for item in iterate_items(rules, task):
        if isinstance(item, (Unreadable, Dropped)):  # the first stage has counted them
            continue
        index += 1
        if index >= len(keeps):
            break
        if not keeps[index]:
            continue
        if item.pair is None:
            pairs = []
            for found in rules.make_pairs(item.document):
                if isinstance(found, Dropped):
                    counts.dropped[found.reason] += found.number
                else:
                    pairs.append(found)
            if not pairs:
                counts.dropped['too short for a pair'] += 1
        else:
            pairs = [item.pair]
        # The pairs of a document follow each other, so that they can be written as one document.
        if last and last[0] is item.document:
            last[1].extend(pairs)
            continue
        if last and last[1]:
            yield last
        last = (item.document, pairs)
    if index + 1 != len(keeps):
        raise _make_changed_error(plan, folder, rank)
    if last and last[1]:
        yield last
