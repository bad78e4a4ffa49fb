"""Word and sentence association tests (WEAT and SEAT): whether two groups of targets lie nearer to
one attribute than to the other.

The protocol is that of May et al. 2019, "On Measuring Social Biases in Sentence Encoders"
(`sentbias/weat.py` of W4ngatang/sent-bias), which is that of Caliskan et al. 2017 with a standard
deviation of a sample. A large effect shows a bias; a small one does not show that there is none.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_distinct
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import SideOptions
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import file_fingerprint

SEED = 0
SAMPLES = 100_000  # partitions; where there are no more, all are gone through
AT_ONCE = 1_000  # of the drawn ones
TIE = 1e-12  # sums of the same numbers in another order differ by less
KEYS = 'targ1', 'targ2', 'attr1', 'attr2'
LAYOUT = (
    'sent_bias_seat/tests/<name>.jsonl, each one object with targ1, targ2, attr1 and attr2 '
    '(sent-bias, tests/)'
)
PROTOCOL = (
    'May et al. 2019: s(w) = mean cosine with attr1 - mean cosine with attr2; effect size = '
    'difference of the means of s over targ1 and targ2 / standard deviation of s over both (ddof '
    '1), 0 where all s are equal; p one-sided, the share of even partitions whose first half has '
    'a sum of s as large or larger; p_holm: Holm-Bonferroni over all bias tasks in results.json'
)


class Concept(NamedTuple):
    """A category, such as 'Flowers', and the distinct texts that stand for it."""

    category: str
    texts: list[str]


class Significance(NamedTuple):
    """A p-value, and of how many partitions; `exact` says that they are all there are."""

    p: float
    partitions: int
    exact: bool


@dataclass(frozen=True)
class Bias(Task):
    """One test.

    Attributes:
      name: name of the task, such as 'bias/sent-weat6'.
      path: file of the test.
      options: side of all texts.
    """

    name: str
    path: epath.Path
    options: SideOptions = SideOptions()

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, fingerprint_files([self.path]))

    def run(self, embed: Embed) -> Result:
        """Embeds and scores; raises UserError with the file for data that cannot be used."""
        concepts = read_test(self.path)
        texts = [text for concept in concepts.values() for text in concept.texts]
        ends = np.cumsum([len(concept.texts) for concept in concepts.values()])
        targets_TxD, first_AxD, second_BxD = np.split(
            embed_distinct(embed, texts, self.options.symmetric_side).astype(np.float64), ends[1:3]
        )
        s_T = associations(targets_TxD, first_AxD, second_BxD)
        found = permutation_test(s_T)
        return Result(
            metric='effect_size',
            metrics={'effect_size': effect_size(s_T), 'p_value': found.p},
            n=len(s_T),
            settings=self._settings(concepts, found),
            counted='target texts',
        )

    def _settings(self, concepts: dict[str, Concept], found: Significance) -> dict[str, object]:
        targ1, targ2, attr1, attr2 = (concept.category for concept in concepts.values())
        drawn = f'{found.partitions - 1:,} random ones and the observed one'
        return {
            'protocol': PROTOCOL,
            'positive': f'{targ1} nearer to {attr1}, {targ2} nearer to {attr2}',
            'side': f'{self.options.symmetric_side} for all texts',
            'similarity': 'dot product of float32 unit vectors, in float64',
            'texts': {key: len(concept.texts) for key, concept in concepts.items()},
            'partitions': f'all {found.partitions:,}' if found.exact else drawn,
            'seed': SEED,
            'libraries': library_versions(),
            'data': file_fingerprint(self.path),
        }


def find_bias(
    data_dir: epath.Path | None, options: SideOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each file of `data_dir`/sent_bias_seat/tests."""
    home = data_dir / 'sent_bias_seat' / 'tests' if data_dir else None
    paths = sorted(home.glob('*.jsonl')) if home else []
    names = [f'{KIND.name}/{path.name.removesuffix(".jsonl")}' for path in paths]
    return {name: Bias(name, path, options) for name, path in zip(names, paths, strict=True)}


def associations(
    targets_TxD: np.ndarray, first_AxD: np.ndarray, second_BxD: np.ndarray
) -> np.ndarray:
    """float64[T]: s(w) of each target w, from float64 unit vectors of targets and of the two
    attributes.
    """
    return (targets_TxD @ first_AxD.T).mean(axis=1) - (targets_TxD @ second_BxD.T).mean(axis=1)


def effect_size(s_T: np.ndarray) -> float:
    """d of associations s, of which the first half is of targ1."""
    first, second = np.split(s_T, 2)
    spread = np.std(s_T, ddof=1)
    return float((first.mean() - second.mean()) / spread) if spread > TIE else 0.0


def permutation_test(s_T: np.ndarray, samples: int = SAMPLES) -> Significance:
    """The share of even partitions whose first half has a sum of s as large as the observed one or
    larger.

    Args:
      s_T: float64[2n]: associations, of which the first n are of targ1.
      samples: the most partitions to look at. Where there are more, samples - 1 are drawn, and the
        observed one is counted with them, so that p is never 0.
    """
    half, total = len(s_T) // 2, math.comb(len(s_T), len(s_T) // 2)
    observed = s_T[:half].sum() - TIE * len(s_T)
    if total <= samples:
        choices_PxH = np.array(list(combinations(range(len(s_T)), half)))
        return Significance(
            float(np.mean(s_T[choices_PxH].sum(axis=1) >= observed)), total, exact=True
        )
    hits = 1 + sum(
        int(np.sum(sums_P >= observed)) for sums_P in _random_sums(s_T, half, samples - 1)
    )
    return Significance(hits / samples, samples, exact=False)


def _random_sums(s_T: np.ndarray, half: int, count: int) -> Iterator[np.ndarray]:
    """float64[P] at a time: the sums of the first halves of `count` shuffles."""
    generator = np.random.default_rng(SEED)
    for start in range(0, count, AT_ONCE):
        rows_PxT = np.broadcast_to(s_T, (min(AT_ONCE, count - start), len(s_T)))
        yield generator.permuted(rows_PxT, axis=1)[:, :half].sum(axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for how many there are (Holm 1979): the smallest one times m, the next
    times m - 1, never below one before.
    """
    p_M = np.array(p_values)
    order = np.argsort(p_M, kind='stable')
    corrected_M = np.empty(len(p_M))
    corrected_M[order] = np.maximum.accumulate(
        np.minimum(1, p_M[order] * np.arange(len(p_M), 0, -1))
    )
    return corrected_M.tolist()


def with_holm(results: dict) -> dict:
    """results.json's content with `p_holm` in every bias task: corrected for all those that stand
    there, of earlier evaluations too.
    """
    rows = {name: row for name, row in results['tasks'].items() if 'p_value' in row['metrics']}
    corrected = holm([row['metrics']['p_value'] for row in rows.values()])
    changed = {
        name: {
            **row,
            'metrics': {**row['metrics'], 'p_holm': p},
            'settings': {**row['settings'], 'holm_tests': len(rows)},
        }
        for (name, row), p in zip(rows.items(), corrected, strict=True)
    }
    return {**results, 'tasks': {**results['tasks'], **changed}}


def read_test(path: epath.Path) -> dict[str, Concept]:
    """The four concepts under `KEYS`; a text that stands twice in one counts once, as published.
    Raises UserError with the file.
    """
    try:
        content = json.loads(path.read_bytes().decode('utf-8-sig'))
    except json.JSONDecodeError as error:
        raise UserError(
            f'{path}:{error.lineno}: not JSON ({error.msg}); the whole file is one object with '
            f'{", ".join(KEYS)}'
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 ({error.reason}): convert the file') from None
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(
            f'{path}: no {", ".join(missing)}; the whole file is one object with {", ".join(KEYS)}'
        )
    concepts = {key: _concept(content[key], f'{path}: {key}') for key in KEYS}
    sizes = [len(concepts[key].texts) for key in ('targ1', 'targ2')]
    if sizes[0] != sizes[1]:
        raise UserError(
            f'{path}: targ1 has {sizes[0]} texts and targ2 {sizes[1]}: there must be as many, for '
            f'halves to be exchanged'
        )
    return concepts


def _concept(value: object, where: str) -> Concept:
    category, texts = (
        (value.get('category'), value.get('examples')) if isinstance(value, dict) else (None, None)
    )
    if not isinstance(category, str) or not isinstance(texts, list) or not texts:
        raise UserError(
            f'{where}: {{"category": "...", "examples": ["...", ...]}} is expected, with one text '
            f'or more'
        )
    bad = [text for text in texts if not isinstance(text, str) or not text.strip()]
    if bad:
        raise UserError(f'{where}: the example {bad[0]!r} is no text: mend or remove it')
    return Concept(category, list(dict.fromkeys(texts)))


KIND = Kind(
    name='bias',
    find=find_bias,
    options=SideOptions,
    layout=LAYOUT,
    folder='sent_bias_seat/tests/',
)
