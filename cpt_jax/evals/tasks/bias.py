"""Word and sentence association tests (WEAT and SEAT): whether two groups of target texts differ in
how near they are to two groups of attribute texts.

The protocol is from May et al. 2019, "On Measuring Social Biases in Sentence Encoders"
(`sentbias/weat.py` of W4ngatang/sent-bias). It is the protocol of Caliskan et al. 2017, but with
the sample standard deviation. A large effect shows a bias; a small one does not show its absence.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_distinct, normalize_vectors
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import SideOptions
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import compute_file_fingerprint, find_paths

SEED = 0
MAX_PARTITIONS = 100_000  # maximum number of partitions; if there are fewer, all of them are used
PARTITIONS_AT_ONCE = 1_000  # random partitions that are computed together
TIE_TOLERANCE = 1e-12  # per summand: sums of the same numbers in another order differ by less
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
    """A category, such as 'Flowers', and distinct texts that represent it."""

    category: str
    texts: list[str]


class Significance(NamedTuple):
    """The result of a permutation test.

    Attributes:
      p: p-value.
      partitions: number of partitions that were evaluated.
      exact: whether these are all possible partitions.
    """

    p: float
    partitions: int
    exact: bool


@dataclass(frozen=True)
class AssociationTest(Task):
    """One association test.

    Attributes:
      name: task name, such as 'bias/sent-weat6'.
      path: file of the test.
      options: side of all texts.
    """

    name: str
    path: epath.Path
    options: SideOptions = SideOptions()

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, fingerprint_files([self.path]))

    def run(self, embed: Embed) -> Result:
        """Returns the effect size and its p-value.

        Raises:
          UserError: the file cannot be used.
        """
        concepts = read_test(self.path)
        texts = [text for concept in concepts.values() for text in concept.texts]
        ends = np.cumsum([len(concept.texts) for concept in concepts.values()])
        vectors_NxD = normalize_vectors(embed_distinct(embed, texts, self.options.symmetric_side))
        targets_UxD, first_NxD, second_OxD = np.split(vectors_NxD.astype(np.float64), ends[1:3])
        s_U = compute_associations(targets_UxD, first_NxD, second_OxD)
        found = run_permutation_test(s_U)
        return Result(
            metric='effect_size',
            metrics={'effect_size': compute_effect_size(s_U), 'p_value': found.p},
            n=len(s_U),
            settings=self._make_settings(concepts, found),
            counted='target texts',
        )

    def _make_settings(
        self, concepts: dict[str, Concept], found: Significance
    ) -> dict[str, object]:
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
            'libraries': read_library_versions(),
            'data': compute_file_fingerprint(self.path),
        }


def find_bias(
    data_dir: epath.Path | None, options: SideOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each file of `data_dir`/sent_bias_seat/tests."""
    home = data_dir / 'sent_bias_seat' / 'tests' if data_dir else None
    paths = find_paths(home, '*.jsonl') if home else []
    names = [f'{KIND.name}/{path.name.removesuffix(".jsonl")}' for path in paths]
    return {
        name: AssociationTest(name, path, options) for name, path in zip(names, paths, strict=True)
    }


def compute_associations(
    targets_UxD: np.ndarray, first_NxD: np.ndarray, second_OxD: np.ndarray
) -> np.ndarray:
    """Returns float64[U]: s(w) of each target w, the difference of its mean cosines with the two
    attributes.

    The arguments are float64 unit vectors.
    """
    return (targets_UxD @ first_NxD.T).mean(axis=1) - (targets_UxD @ second_OxD.T).mean(axis=1)


def compute_effect_size(s_U: np.ndarray) -> float:
    """Returns the effect size d of associations s; the first half of s belongs to targ1."""
    first, second = np.split(s_U, 2)
    deviation = np.std(s_U, ddof=1)
    if deviation <= TIE_TOLERANCE:
        return 0.0
    return float((first.mean() - second.mean()) / deviation)


def run_permutation_test(s_U: np.ndarray, samples: int = MAX_PARTITIONS) -> Significance:
    """Returns the fraction of partitions into halves whose first half has a sum of s at least as
    large as the observed one.

    Args:
      s_U: float64[2n], associations. The first n belong to targ1.
      samples: maximum number of partitions. If there are more, `samples` - 1 random partitions and
        the observed one are counted, so p is never 0.
    """
    half = len(s_U) // 2
    total = math.comb(len(s_U), half)
    observed = s_U[:half].sum() - TIE_TOLERANCE * len(s_U)
    if total <= samples:
        choices_PxW = np.array(list(combinations(range(len(s_U)), half)))
        sums_P = s_U[choices_PxW].sum(axis=1)
        return Significance(float(np.mean(sums_P >= observed)), total, exact=True)
    hits = 1  # the observed partition
    for sums_P in _draw_sums(s_U, half, samples - 1):
        hits += int(np.sum(sums_P >= observed))
    return Significance(hits / samples, samples, exact=False)


def _draw_sums(s_U: np.ndarray, half: int, count: int) -> Iterator[np.ndarray]:
    """Yields the sums of the first halves of `count` shuffles of s, as float64 arrays."""
    generator = np.random.default_rng(SEED)
    for start in range(0, count, PARTITIONS_AT_ONCE):
        rows_PxU = np.broadcast_to(s_U, (min(PARTITIONS_AT_ONCE, count - start), len(s_U)))
        yield generator.permuted(rows_PxU, axis=1)[:, :half].sum(axis=1)


def correct_with_holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for multiple tests (Holm 1979).

    The smallest of m p-values is multiplied by m, the next one by m - 1, and so on. A corrected
    value is at least as large as the one before it.
    """
    p_M = np.array(p_values)
    order = np.argsort(p_M, kind='stable')
    corrected_M = np.empty(len(p_M))
    corrected_M[order] = np.maximum.accumulate(
        np.minimum(1, p_M[order] * np.arange(len(p_M), 0, -1))
    )
    return corrected_M.tolist()


def add_holm(results: dict) -> dict:
    """Returns results with `p_holm` for every bias task.

    The correction is over all bias tasks in results.json, including those of earlier evaluations.
    """
    rows = {name: row for name, row in results['tasks'].items() if 'p_value' in row['metrics']}
    corrected = correct_with_holm([row['metrics']['p_value'] for row in rows.values()])
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
    """Reads the concepts of a test, by the names in `KEYS`.

    Duplicate texts of a concept are dropped, as in the published code.

    Raises:
      UserError: the file cannot be used.
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
    concepts = {key: _parse_concept(content[key], f'{path}: {key}') for key in KEYS}
    sizes = [len(concepts[key].texts) for key in ('targ1', 'targ2')]
    if sizes[0] != sizes[1]:
        raise UserError(
            f'{path}: targ1 has {sizes[0]} texts and targ2 has {sizes[1]}; the permutation test '
            f'needs the same number'
        )
    return concepts


def _parse_concept(value: object, where: str) -> Concept:
    fields = value if isinstance(value, dict) else {}
    category = fields.get('category')
    texts = fields.get('examples')
    if not isinstance(category, str) or not isinstance(texts, list) or not texts:
        raise UserError(
            f'{where}: {{"category": "...", "examples": ["...", ...]}} is expected, with one text '
            f'or more'
        )
    invalid = [text for text in texts if not isinstance(text, str) or not text.strip()]
    if invalid:
        raise UserError(f'{where}: the example {invalid[0]!r} is not a text: fix or remove it')
    return Concept(category, list(dict.fromkeys(texts)))


KIND = TaskKind(
    name='bias',
    find=find_bias,
    options=SideOptions,
    layout=LAYOUT,
    folder='sent_bias_seat/tests/',
)
