"""Sentence similarity on SentEval's STS sets: how far the order of the cosines is that of people's
scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_distinct
from cpt_jax.evals.fingerprint import fingerprint_glob, fingerprint_task
from cpt_jax.evals.options import SideOptions, SplitOptions
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import file_fingerprint, read_lines

# The SMT set of 2013 has a licence that keeps its texts out of SentEval.
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
    'data/downstream); with --split dev sts-dev.csv and SICK_trial.txt alone, with --split train '
    'sts-train.csv and SICK_train.txt'
)
_SICK = {'test': 'SICK_test_annotated.txt', 'dev': 'SICK_trial.txt', 'train': 'SICK_train.txt'}
# What a fingerprint covers, below senteval/.
_FILES = {name: f'STS/{name}*/*' for name in (*YEARS, 'STSBenchmark')} | {'SICK-R': 'SICK/*'}
# SentEval itself trains a regression on STS-B and SICK-R, and has no "all"; the tables of SimCSE,
# sentence-transformers and mteb are these.
PROTOCOL = (
    'Spearman of the cosine, nothing trained; of several subsets: spearman and pearson over all '
    'their pairs together ("all"), spearman_mean and spearman_wmean over their Spearmans, the '
    'latter weighted by pairs; pairs without a score are left out; one cosine for all pairs '
    'counts 0'
)


class ScoredPairs(NamedTuple):
    """The scored pairs of one subset.

    Attributes:
      name: of the subset.
      paths: the files that they stand in.
      texts: (first, second) of each.
      gold_N: float64[N], people's scores; not all equal.
    """

    name: str
    paths: list[epath.Path]
    texts: list[tuple[str, str]]
    gold_N: np.ndarray


@dataclass(frozen=True)
class SimilarityOptions(SideOptions, SplitOptions):
    """Options of sts/*: the side of both texts of every pair, and the split of the pairs."""


@dataclass(frozen=True)
class Similarity(Task):
    """One set of pairs.

    Attributes:
      name: name of the task, such as 'sts/STS12'.
      load: reads its subsets.
      fingerprint_data: returns a fingerprint of what `load` reads.
      options: options of the kind.
    """

    name: str
    load: Callable[[], list[ScoredPairs]]
    fingerprint_data: Callable[[], str]
    options: SimilarityOptions = SimilarityOptions()

    @property
    def side(self) -> str:
        return self.options.symmetric_side

    @property
    def split(self) -> str:
        return _split_of(self.options)

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, self.fingerprint_data())

    def run(self, embed: Embed) -> Result:
        """Embeds and scores; raises UserError with file and line for data that cannot be used."""
        subsets = self.load()
        cosines = _split(
            _cosines(embed, [pair for pairs in subsets for pair in pairs.texts], self.side), subsets
        )
        return Result(
            metric='spearman',
            metrics=score_pairs(cosines, [pairs.gold_N for pairs in subsets]),
            n=sum(len(pairs.texts) for pairs in subsets),
            settings={
                'protocol': PROTOCOL,
                'split': self.split,
                'side': f'{self.side} for both texts',
                'similarity': 'dot product of unit vectors, float32',
                'text': 'as in the files, with single spaces (those of SentEval are tokenised, '
                'and lower-cased but for SICK)',
                'pairs': {pairs.name: len(pairs.texts) for pairs in subsets},
                'libraries': library_versions('scipy'),
                'data': file_fingerprint(*(path for pairs in subsets for path in pairs.paths)),
            },
            counted='pairs',
        )


def find_similarity(
    data_dir: epath.Path | None, options: SimilarityOptions, context: Context
) -> dict[str, Task]:
    """Returns the tasks whose data are in `data_dir`/senteval; STS12 to STS16 have a test split
    only.
    """
    if not data_dir:
        return {}
    senteval, split = data_dir / 'senteval', _split_of(options)
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


def _split_of(options: SimilarityOptions) -> str:
    return options.split or 'test'


def score_pairs(cosines: Sequence[np.ndarray], golds: Sequence[np.ndarray]) -> dict[str, float]:
    """The metrics, from -1 to 1, of float[N] cosines and of gold scores of each subset; the two
    means only of several subsets.
    """
    # Takes a second, which programs that do other tasks need not wait.
    from scipy.stats import pearsonr, spearmanr

    every = np.concatenate(cosines), np.concatenate(golds)
    metrics = {'spearman': _correlation(spearmanr, *every)}
    if len(golds) > 1:
        each = [_correlation(spearmanr, *pair) for pair in zip(cosines, golds, strict=True)]
        metrics['spearman_mean'] = float(np.mean(each))
        metrics['spearman_wmean'] = float(
            np.average(each, weights=[len(gold_N) for gold_N in golds])
        )
    return metrics | {'pearson': _correlation(pearsonr, *every)}


def _correlation(measure: Callable, cosines_N: np.ndarray, gold_N: np.ndarray) -> float:
    """0 where all cosines are equal, of which scipy makes nan: such a model knows nothing of the
    order.
    """
    return (
        float(measure(cosines_N.astype(np.float64), gold_N).statistic) if np.ptp(cosines_N) else 0.0
    )


def _cosines(embed: Embed, pairs: Sequence[tuple[str, str]], side: str) -> np.ndarray:
    """float32[N] of N pairs."""
    vectors_MxD = embed_distinct(embed, [text for pair in pairs for text in pair], side)
    return np.einsum('nd,nd->n', vectors_MxD[::2], vectors_MxD[1::2])


def _split(cosines_N: np.ndarray, subsets: Sequence[ScoredPairs]) -> list[np.ndarray]:
    return np.split(cosines_N, np.cumsum([len(pairs.texts) for pairs in subsets])[:-1])


def read_year(folder: epath.Path, names: Sequence[str]) -> list[ScoredPairs]:
    """Reads the subsets of one of STS12 to STS16."""
    return [read_subset(folder, name) for name in names]


def read_subset(folder: epath.Path, name: str) -> ScoredPairs:
    """A subset of STS12 to STS16: two texts a line in one file, and the score, or nothing, on the
    same line of another.
    """
    paths = [folder / f'STS.{kind}.{name}.txt' for kind in ('input', 'gs')]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise UserError(f'{folder}: no {", ".join(missing)}; expected in --data_dir: {LAYOUT}')
    lines, scores = (list(read_lines(path, blank=True)) for path in paths)
    if len(lines) != len(scores):
        raise UserError(
            f'{paths[1]}: has {len(scores)} lines and {paths[0].name} {len(lines)}: they must be '
            f'of the same pairs'
        )
    scored = [(*line, *gold) for line, gold in zip(lines, scores, strict=True) if gold[1].strip()]
    rows = [
        (_texts(where, line.split('\t')), _gold(where_gold, [gold]))
        for where, line, where_gold, gold in scored
    ]
    return _pairs(name, paths, rows)


def read_benchmark(path: epath.Path, split: str) -> ScoredPairs:
    """A split of STS-B: score and texts stand in columns 5 to 7, sources may follow."""
    rows = [(where, line.split('\t')) for where, line in read_lines(path)]
    return _pairs(
        split,
        [path],
        [(_texts(where, fields[5:7]), _gold(where, fields[4:5])) for where, fields in rows],
    )


def read_sick(path: epath.Path, split: str) -> ScoredPairs:
    """A split of SICK, whose relatedness is the score; a header stands first."""
    (where, header), *lines = [*read_lines(path)] or [(f'{path}:1', '')]
    if header.split('\t')[1:4] != ['sentence_A', 'sentence_B', 'relatedness_score']:
        raise UserError(
            f'{where}: a header with pair_ID, sentence_A, sentence_B and relatedness_score, '
            f'separated by tabs, is expected'
        )
    rows = [(where, line.split('\t')) for where, line in lines]
    return _pairs(
        split,
        [path],
        [(_texts(where, fields[1:3]), _gold(where, fields[3:4])) for where, fields in rows],
    )


def _texts(where: str, fields: Sequence[str]) -> tuple[str, str]:
    """The two texts, words separated by single spaces, as SentEval hands them on."""
    texts = [' '.join(field.split()) for field in fields]
    if len(texts) != 2 or not all(texts):
        raise UserError(f'{where}: two texts are expected, separated by a tab')
    return texts[0], texts[1]


def _gold(where: str, fields: Sequence[str]) -> float:
    """The score in the one field; none where the line was too short."""
    try:
        gold = float(fields[0])
    except (IndexError, ValueError):
        gold = np.nan
    if not np.isfinite(gold):
        there = repr(fields[0][:40]) if fields else 'the end of the line'
        raise UserError(
            f'{where}: a score is expected, a number, not {there}: take the release with its labels'
        )
    return gold


def _pairs(
    name: str, paths: list[epath.Path], rows: Sequence[tuple[tuple[str, str], float]]
) -> ScoredPairs:
    golds = [gold for _, gold in rows]
    if len(set(golds)) < 2:
        raise UserError(
            f'{paths[-1]}: {len(golds)} scored pairs with {len(set(golds))} different scores: no '
            f'correlation can be measured'
        )
    return ScoredPairs(name, paths, [texts for texts, _ in rows], np.array(golds))


KIND = Kind(
    name='sts',
    find=find_similarity,
    options=SimilarityOptions,
    layout=LAYOUT,
    folder='senteval/ (its data/downstream)',
)
