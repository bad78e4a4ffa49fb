"""Sentence similarity on SentEval's STS sets: the rank correlation of cosines with human scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_distinct, normalize_vectors
from cpt_jax.evals.fingerprint import fingerprint_glob, fingerprint_task
from cpt_jax.evals.intervals.item_scores import PairScores
from cpt_jax.evals.options import SideOptions, SplitOptions
from cpt_jax.evals.store.embedding_cache import digest_json
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import compute_file_fingerprint, read_lines

# Subsets of each year. The SMT subset of 2013 is missing: its license does not allow SentEval to
# distribute it.
YEARS = {
    'STS12': ('MSRpar', 'MSRvid', 'SMTeuroparl', 'surprise.OnWN', 'surprise.SMTnews'),
    'STS13': ('FNWN', 'headlines', 'OnWN'),
    'STS14': ('deft-forum', 'deft-news', 'headlines', 'images', 'OnWN', 'tweet-news'),
    'STS15': ('answers-forums', 'answers-students', 'belief', 'headlines', 'images'),
    'STS16': ('answer-answer', 'headlines', 'plagiarism', 'postediting', 'question-question'),
}
LAYOUT = (
    'senteval/STS/STS12-en-test/ to STS16-en-test/ with STS.input.*.txt and STS.gs.*.txt, '
    'senteval/STS/STSBenchmark/sts-test.csv and senteval/SICK/SICK_test_annotated.txt (SentEval, '
    'data/downstream); for --split dev only sts-dev.csv and SICK_trial.txt, for --split train only '
    'sts-train.csv and SICK_train.txt'
)
_SICK = {'test': 'SICK_test_annotated.txt', 'dev': 'SICK_trial.txt', 'train': 'SICK_train.txt'}
# Files of each task's fingerprint, below senteval/.
_FILES = {name: f'STS/{name}*/*' for name in (*YEARS, 'STSBenchmark')} | {'SICK-R': 'SICK/*'}
# This is the protocol of SimCSE, sentence-transformers and mteb. SentEval itself trains a
# regression on STS-B and SICK-R, and does not compute "all".
PROTOCOL = (
    'Spearman of the cosine, nothing trained; of several subsets: spearman and pearson over all '
    'their pairs together ("all"), spearman_mean and spearman_wmean over their Spearmans, the '
    'latter weighted by pairs; pairs without a score are left out; one cosine for all pairs '
    'counts 0'
)


class ScoredPairs(NamedTuple):
    """The scored pairs of one subset.

    Attributes:
      name: name of the subset.
      paths: files of the subset.
      texts: (first text, second text) of each pair.
      gold_N: float64, human scores, which are not all equal.
    """

    name: str
    paths: list[epath.Path]
    texts: list[tuple[str, str]]
    gold_N: np.ndarray


@dataclass(frozen=True)
class SimilarityOptions(SideOptions, SplitOptions):
    """Options of sts/*: the side of both texts of a pair, and the split."""


@dataclass(frozen=True)
class Similarity(Task):
    """Sentence similarity on one set of pairs.

    Attributes:
      name: task name, such as 'sts/STS12'.
      load: function that reads the subsets.
      fingerprint_data: function that returns a fingerprint of the data that `load` reads.
      options: options of the kind.
    """

    name: str
    load: Callable[[], list[ScoredPairs]]
    fingerprint_data: Callable[[], str]
    options: SimilarityOptions = SimilarityOptions()

    @property
    def side(self) -> str:
        """Side of all texts."""
        return self.options.symmetric_side

    @property
    def split(self) -> str:
        """Split of the pairs."""
        return _get_split(self.options)

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, self.fingerprint_data())

    def run(self, embed: Embed) -> Result:
        """Returns the correlations.

        Raises:
          UserError: a line cannot be used (with file and line).
        """
        subsets = self.load()
        all_texts = [texts for pairs in subsets for texts in pairs.texts]
        cosines_N = _compute_cosines(embed, all_texts, self.side)
        golds = [pairs.gold_N for pairs in subsets]
        return Result(
            metric='spearman',
            metrics=score_pairs(_split_by_subset(cosines_N, subsets), golds),
            n=sum(len(pairs.texts) for pairs in subsets),
            settings={
                'protocol': PROTOCOL,
                'split': self.split,
                'side': f'{self.side} for both texts',
                'similarity': 'dot product of unit vectors, float32',
                'text': 'as in the files, with single spaces (those of SentEval are tokenised, '
                'and lower-cased but for SICK)',
                'pairs': {pairs.name: len(pairs.texts) for pairs in subsets},
                'libraries': read_library_versions('scipy'),
                'data': compute_file_fingerprint(
                    *(path for pairs in subsets for path in pairs.paths)
                ),
            },
            counted='pairs',
            item_scores=PairScores(
                digest_json([all_texts, [gold_N.tolist() for gold_N in golds]]),
                cosines_N,
                np.concatenate(golds),
                [len(gold_N) for gold_N in golds],
            ),
        )


def sample_pairs(task: Similarity, count: int, seed: int) -> Similarity:
    """Returns the task on a random sample of the pairs of its subsets together.

    Args:
      task: the task. It is returned as it is if it has no more pairs than `count`.
      count: number of pairs.
      seed: seed of the sample.

    Raises:
      UserError: a line cannot be used, or (by the loading function of the returned task) all pairs
        of the sample have the same score.
    """
    subsets = task.load()
    rows = [row for pairs in subsets for row in zip(pairs.texts, pairs.gold_N, strict=True)]
    if count >= len(rows):
        return task

    def load() -> list[ScoredPairs]:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
        names = '+'.join(pairs.name for pairs in subsets)
        paths = [path for pairs in subsets for path in pairs.paths]
        return [_make_scored_pairs(names, paths, [rows[index] for index in drawn])]

    sample = f'{count} pairs, seed {seed}'
    return replace(task, load=load, fingerprint_data=lambda: f'{task.fingerprint_data()}, {sample}')


def find_similarity(
    data_dir: epath.Path | None, options: SimilarityOptions, context: Context
) -> dict[str, Task]:
    """Returns the tasks whose data are in `data_dir`/senteval.

    STS12 to STS16 are left out for other splits than test, because they have no other split.
    """
    if not data_dir:
        return {}
    senteval = data_dir / 'senteval'
    split = _get_split(options)
    benchmark = senteval / 'STS' / 'STSBenchmark' / f'sts-{split}.csv'
    relatedness = senteval / 'SICK' / _SICK[split]
    loads: dict[str, Callable[[], list[ScoredPairs]]] = {}
    for year, subsets in YEARS.items():
        folder = senteval / 'STS' / f'{year}-en-test'
        if split == 'test' and folder.is_dir():
            loads[year] = partial(read_year, folder, subsets)
    if benchmark.exists():
        loads['STSBenchmark'] = lambda: [read_benchmark(benchmark, split)]
    if relatedness.exists():
        loads['SICK-R'] = lambda: [read_sick(relatedness, split)]
    tasks = [
        Similarity(
            f'{KIND.name}/{name}',
            load,
            partial(fingerprint_glob, senteval, _FILES[name]),
            options,
        )
        for name, load in loads.items()
    ]
    return {task.name: task for task in tasks}


def _get_split(options: SimilarityOptions) -> str:
    return options.split or 'test'


def score_pairs(cosines: Sequence[np.ndarray], golds: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns the correlations, from -1 to 1.

    The means over subsets are included only if there are several subsets.

    Args:
      cosines: float[N], cosines of each subset.
      golds: float[N], human scores of each subset.
    """
    # The import takes a second, so it is delayed until a task needs it.
    from scipy.stats import pearsonr, spearmanr

    every = np.concatenate(cosines), np.concatenate(golds)
    metrics = {'spearman': _correlate(spearmanr, *every)}
    if len(golds) > 1:
        each = [_correlate(spearmanr, *pair) for pair in zip(cosines, golds, strict=True)]
        sizes = [len(gold_N) for gold_N in golds]
        metrics['spearman_mean'] = float(np.mean(each))
        metrics['spearman_wmean'] = float(np.average(each, weights=sizes))
    return metrics | {'pearson': _correlate(pearsonr, *every)}


def _correlate(measure: Callable, cosines_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Returns the correlation; 0 if all cosines are equal, for which scipy returns nan."""
    if not np.ptp(cosines_N):
        return 0.0
    return float(measure(cosines_N.astype(np.float64), gold_N).statistic)


def _compute_cosines(embed: Embed, pairs: Sequence[tuple[str, str]], side: str) -> np.ndarray:
    """Returns float32[N]: the cosine of each pair."""
    texts = [text for pair in pairs for text in pair]
    vectors_MxD = normalize_vectors(embed_distinct(embed, texts, side))
    return np.einsum('nd,nd->n', vectors_MxD[::2], vectors_MxD[1::2])


def _split_by_subset(cosines_N: np.ndarray, subsets: Sequence[ScoredPairs]) -> list[np.ndarray]:
    ends = np.cumsum([len(pairs.texts) for pairs in subsets])
    return np.split(cosines_N, ends[:-1])


def read_year(folder: epath.Path, names: Sequence[str]) -> list[ScoredPairs]:
    """Reads the subsets of one of STS12 to STS16."""
    return [read_subset(folder, name) for name in names]


def read_subset(folder: epath.Path, name: str) -> ScoredPairs:
    """Reads a subset of STS12 to STS16.

    One file has two texts per line. Another file has their score on the same line, or an empty line
    for pairs without a score, which are skipped.

    Raises:
      UserError: a file is missing, or a line cannot be used (with file and line).
    """
    paths = [folder / f'STS.{kind}.{name}.txt' for kind in ('input', 'gs')]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise UserError(f'{folder}: no {", ".join(missing)}; expected in --data_dir: {LAYOUT}')
    lines, scores = (list(read_lines(path, blank=True)) for path in paths)
    if len(lines) != len(scores):
        raise UserError(
            f'{paths[1]}: has {len(scores)} lines, but {paths[0].name} has {len(lines)}; line i of '
            f'both must belong to the same pair'
        )
    rows = []
    for (where, line), (where_gold, gold) in zip(lines, scores, strict=True):
        if gold.strip():
            texts = _parse_texts(where, line.split('\t'))
            rows.append((texts, _parse_gold(where_gold, [gold])))
    return _make_scored_pairs(name, paths, rows)


def read_benchmark(path: epath.Path, split: str) -> ScoredPairs:
    """Reads a split of STS-B: columns 5 to 7 are the score and the two texts; more may follow."""
    rows = []
    for where, line in read_lines(path):
        fields = line.split('\t')
        rows.append((_parse_texts(where, fields[5:7]), _parse_gold(where, fields[4:5])))
    return _make_scored_pairs(split, [path], rows)


def read_sick(path: epath.Path, split: str) -> ScoredPairs:
    """Reads a split of SICK, whose relatedness is the score. The first line is a header."""
    (where, header), *lines = [*read_lines(path)] or [(f'{path}:1', '')]
    if header.split('\t')[1:4] != ['sentence_A', 'sentence_B', 'relatedness_score']:
        raise UserError(
            f'{where}: a header with pair_ID, sentence_A, sentence_B and relatedness_score, '
            f'separated by tabs, is expected'
        )
    rows = []
    for where, line in lines:
        fields = line.split('\t')
        rows.append((_parse_texts(where, fields[1:3]), _parse_gold(where, fields[3:4])))
    return _make_scored_pairs(split, [path], rows)


def _parse_texts(where: str, fields: Sequence[str]) -> tuple[str, str]:
    """Returns the two texts, with words separated by single spaces as in SentEval."""
    texts = [' '.join(field.split()) for field in fields]
    if len(texts) != 2 or not all(texts):
        raise UserError(f'{where}: two texts are expected, separated by a tab')
    return texts[0], texts[1]


def _parse_gold(where: str, fields: Sequence[str]) -> float:
    """Returns the human score of a pair.

    Args:
      where: 'file:line', for the message.
      fields: [the field with the score]; [] if the line is too short.
    """
    try:
        gold = float(fields[0])
    except (IndexError, ValueError):
        gold = np.nan
    if not np.isfinite(gold):
        found = repr(fields[0][:40]) if fields else 'the end of the line'
        raise UserError(
            f'{where}: the score must be a number, not {found}: use the release with labels'
        )
    return gold


def _make_scored_pairs(
    name: str, paths: list[epath.Path], rows: Sequence[tuple[tuple[str, str], float]]
) -> ScoredPairs:
    golds = [gold for _, gold in rows]
    if len(set(golds)) < 2:
        raise UserError(
            f'{paths[-1]}: {len(golds)} scored pairs with {len(set(golds))} different scores: the '
            f'correlation is not defined'
        )
    return ScoredPairs(name, paths, [texts for texts, _ in rows], np.array(golds))


KIND = TaskKind(
    name='sts',
    find=find_similarity,
    options=SimilarityOptions,
    layout=LAYOUT,
    folder='senteval/ (its data/downstream)',
)
