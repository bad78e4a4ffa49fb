"""Makes a data set of the shards of all tasks: file names, metadata, summary and card."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt_jax.data.pairs import digest_texts
from cpt_jax.data.prepared import SUMMARY_FILE, get_starts_path
from cpt_jax.prepare.card import format_card
from cpt_jax.prepare.consistency import CONSISTENT, summarize_ranks
from cpt_jax.prepare.counts import Counts, add_counts
from cpt_jax.prepare.decontamination import load_test_texts, report_contamination
from cpt_jax.prepare.examples import SPLITS, make_features
from cpt_jax.prepare.plan import PREPARE_VERSION, Preparation
from cpt_jax.prepare.work_folder import WorkFolder, save_array
from cpt_jax.prepare.write import get_benchmark_path
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_files import read_json_file, write_json

NAME = 'prepared'
VERSION = '1.0.0'


class SplitShards(NamedTuple):
    """The shards of a split.

    Attributes:
      ranks: tasks with a pair in this split, ascending.
      lengths: number of pairs of each.
      bytes: size of all examples.
      contents: digest of all examples.
    """

    ranks: Sequence[int]
    lengths: Sequence[int]
    bytes: int
    contents: str

    def get_name(self, split: str, shard: int) -> str:
        """Returns the name of a shard's file as tfds expects it."""
        return f'{NAME}-{split}.array_record-{shard:05d}-of-{len(self.ranks):05d}'


def read_counts(plan: Preparation, folder: WorkFolder, stage: str) -> dict[str, Counts]:
    """Returns the counts of a stage, by source."""
    parts: dict[str, list[Counts]] = {name: [] for name in plan.sources}
    for rank, task in enumerate(plan.tasks):
        stored = read_json_file(folder.get_path(stage, rank, '.json'))
        parts[task.source].append(Counts.from_json(stored['counts']))
    return {name: add_counts(found) for name, found in parts.items()}


def finish(plan: Preparation, folder: WorkFolder) -> None:
    """Writes the data set's files into the output directory; `summary.json` comes last.

    A second call after a kill goes on where the first one stopped.

    Args:
      plan: the plan.
      folder: work folder.

    Raises:
      UserError: no pair is left.
    """
    stage = CONSISTENT if plan.consistency.model else 'shards'
    splits = {split: _collect_shards(plan, folder, stage, split) for split in SPLITS}
    splits = {split: shards for split, shards in splits.items() if shards.ranks}
    judged = read_counts(plan, folder, 'judged')
    written = read_counts(plan, folder, stage)
    counts = {name: add_counts([judged[name], written[name]]) for name in plan.sources}
    summary = _make_summary(plan, splits, counts)
    if plan.decontamination.data_dir:
        summary['decontamination'] = _report_contamination(plan, folder)
    if plan.consistency.model:
        ranks = summarize_ranks(folder, len(plan.tasks))
        summary['consistency'] = {**vars(plan.consistency), 'ranks': ranks}
    if 'train' not in splits:
        dropped = ', '.join(
            f'{number:,} {reason}' for reason, number in add_counts(counts.values()).dropped.items()
        )
        raise UserError(f'no pair for training is left (dropped: {dropped or "nothing"})')
    for split, shards in splits.items():
        for shard, rank in enumerate(shards.ranks):
            path = folder.get_path(stage, rank, f'-{split}')
            if path.exists():
                os.replace(path, folder.output / shards.get_name(split, shard))
        sizes = [np.load(folder.get_path(stage, rank, f'-{split}.npy')) for rank in shards.ranks]
        starts = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
        save_array(get_starts_path(folder.output, split), starts)
    _write_metadata(plan, folder.output, splits)
    write_atomically(folder.output / 'card.md', format_card(summary))
    write_data_set_report(folder.output, splits['train'], summary)
    write_json(folder.output / SUMMARY_FILE, summary)


def _collect_shards(plan: Preparation, folder: WorkFolder, stage: str, split: str) -> SplitShards:
    ranks, lengths, digests, size = [], [], [], 0
    for rank in range(len(plan.tasks)):
        stored = read_json_file(folder.get_path(stage, rank, '.json'))
        pairs = stored['counts']['pairs'][split]
        if pairs:
            ranks.append(rank)
            lengths.append(pairs)
            digest, number = stored['digests'][split]
            digests.append(digest)
            size += number
    return SplitShards(ranks, lengths, size, digest_texts(*digests))


def _make_summary(
    plan: Preparation, splits: Mapping[str, SplitShards], counts: Mapping[str, Counts]
) -> dict[str, Any]:
    return {
        'version': PREPARE_VERSION,
        'preparation': plan.fingerprint,
        'contents': {split: shards.contents for split, shards in splits.items()},
        'pairs': {split: sum(shards.lengths) for split, shards in splits.items()},
        'total': add_counts(counts.values()).to_json(),
        'sources': {name: found.to_json() for name, found in counts.items()},
        'config': plan.config,
    }


def write_data_set_report(output: Path, shards: SplitShards, summary: Mapping[str, Any]) -> None:
    """Writes report.html, from the summary and random pairs of the split `train`."""
    # Imports matplotlib, which only this task needs.
    from cpt_jax.prepare.report import render_preparation, sample_examples

    paths = [output / shards.get_name('train', shard) for shard in range(len(shards.ranks))]
    examples = sample_examples(paths, shards.lengths)
    write_atomically(output / 'report.html', render_preparation(summary, examples))


def _report_contamination(plan: Preparation, folder: WorkFolder) -> dict[str, Any]:
    parts = (
        read_json_file(folder.get_path('shards', rank, '.json'))['contamination']
        for rank in range(len(plan.tasks))
    )
    tests = load_test_texts(get_benchmark_path(folder))
    return report_contamination(tests, parts, plan.decontamination.documents)


def _write_metadata(plan: Preparation, output: Path, splits: Mapping[str, SplitShards]) -> None:
    """Writes features.json and dataset_info.json, which tfds reads."""
    import tensorflow_datasets as tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=str(output), module_name=NAME
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=make_features(plan.output.fields),
        description='Pairs of texts, written by launch/prepare.py of cpt_jax. See card.md.',
    )
    info.set_file_format('array_record')
    info.set_splits(
        tfds.core.splits.SplitDict(
            [
                tfds.core.splits.SplitInfo(
                    name=split,
                    shard_lengths=list(shards.lengths),
                    num_bytes=shards.bytes,
                    filename_template=tfds.core.naming.ShardedFileTemplate(
                        data_dir=output,
                        dataset_name=NAME,
                        split=split,
                        filetype_suffix='array_record',
                    ),
                )
                for split, shards in splits.items()
            ]
        )
    )
    info.write_to_directory(output)
