"""Open-domain question answering: the fraction of questions for which one of the first k passages
contains an answer (NQ and TriviaQA, with DPR's protocol).
"""

import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.answers import contains_answer, make_searchable
from cpt_jax.embed.function import Embed
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.intervals.item_scores import QueryScores
from cpt_jax.evals.options import SearchOptions
from cpt_jax.evals.report.example import (
    EXAMPLE_ANSWERS,
    EXAMPLE_QUERIES,
    Answers,
    Example,
    FoundAnswer,
    cut_text,
)
from cpt_jax.evals.store.embedding_cache import digest_json
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.documents import IndexedDocuments, Row
from cpt_jax.search.ranking import Hits
from cpt_jax.search.searcher import SEED, compute_search_recalls
from cpt_jax.search.trec_run import Run, write_run
from cpt_jax.storage.text_lines import (
    compute_file_fingerprint,
    find_paths,
    get_text_field,
    read_json_lines,
    read_lines,
)

CUTOFFS = 20, 100
PASSAGES = 'psgs_w100.tsv'
LAYOUT = (
    f"openqa/<name>/ with questions.jsonl (or DPR's questions.csv), and {PASSAGES} there or in "
    f'openqa/'
)

PROTOCOL = (
    "DPR's answer recall: share of the questions for which one of the first k passages holds an "
    'answer, token for token, in NFD and lower case; titles are embedded and not searched'
)


@dataclass(frozen=True)
class OpenQa(Task):
    """Open-domain question answering on one set of questions.

    Attributes:
      name: task name, such as 'openqa/nq'.
      questions: file of the questions.
      passages: file of the passages.
      options: options of the kind. At least 100 passages are kept for each question.
      runs: directory for the model's ranking, `<name>.trec`; None writes no ranking.
    """

    name: str
    questions: epath.Path
    passages: epath.Path
    options: SearchOptions = SearchOptions()
    runs: epath.Path | None = None

    def fingerprint(self) -> str:
        own = self.questions.parent
        # The passages are next to the questions, or in the parent folder if several sets share
        # them.
        files = [*find_paths(own, '*'), *find_paths(own.parent, '*')]
        return fingerprint_task(self.name, self.options, fingerprint_files(files))

    def run(self, embed: Embed) -> Result:
        questions, answers = read_questions(self.questions)
        passages = IndexedDocuments(self.passages, partial(read_passages, self.passages))
        if not passages.names:
            raise UserError(f'{self.passages}: has no passages')
        k = max(self.options.k, *CUTOFFS)
        searched = self.options.searcher.search(embed, passages, questions, k)
        if self.runs:
            write_run(self.runs / f'{self.name}.trec', _make_run(searched.hits['model'], passages))
        right = mark_right_passages(
            searched.hits, passages.positions_N, read_passages(self.passages, titles=False), answers
        )
        scores = {name: score_questions(right_Qxk) for name, right_Qxk in right.items()}
        if searched.exact:
            scores['model'][f'recall_vs_exact@{searched.exact.documents_Qxk.shape[1]}'] = (
                compute_search_recalls(searched.exact, searched.hits['model'])
            )
        metrics = {name: average_questions(values) for name, values in scores.items()}
        settings = self._make_settings(passages)
        return Result(
            metric=f'answer_recall@{CUTOFFS[0]}',
            metrics=metrics.pop('model'),
            n=len(questions),
            settings=settings | searched.settings,
            baselines=metrics,
            examples=_make_examples(questions, answers, passages, searched.hits, right),
            counted='questions',
            item_scores=QueryScores(
                digest_json([questions, answers, settings['data']]),
                scores.pop('model'),
            ),
            baseline_values=scores,
        )

    def _make_settings(self, passages: IndexedDocuments) -> dict[str, object]:
        return {
            'protocol': PROTOCOL,
            'direction': 'question to passage',
            'similarity': 'dot product of unit vectors, float32',
            'text': "title + ' ' + text, stripped",
            'k': self.options.k,
            'documents': len(passages),
            'data': compute_file_fingerprint(self.questions, self.passages),
            'libraries': read_library_versions('bm25s'),
        }


def find_open_qa(
    data_dir: epath.Path | None, options: SearchOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each folder of `data_dir`/openqa that has questions."""
    home = data_dir / 'openqa' if data_dir else None
    paths = find_paths(home, '*/questions.*') if home else []
    tasks: dict[str, Task] = {}
    for path in paths:
        if path.suffix in ('.jsonl', '.csv'):
            name = f'{KIND.name}/{path.parent.name}'
            if name in tasks:
                raise UserError(
                    f'{path}: the task {name} has another file of questions too: remove one of them'
                )
            tasks[name] = OpenQa(
                name,
                path,
                _find_passages(path.parent),
                options,
                context.runs if options.trec_runs else None,
            )
    return tasks


def _find_passages(folder: epath.Path) -> epath.Path:
    """Returns the file of passages in `folder`, or else the one in its parent, which is shared by
    all sets of questions.
    """
    own = folder / PASSAGES
    return own if own.exists() else folder.parent / PASSAGES


def read_questions(path: epath.Path) -> tuple[list[str], list[list[str]]]:
    """Reads questions and the accepted answers of each.

    Args:
      path: .jsonl file with "question" and "answer" or "answers" (NQ-open), or DPR's .csv file:
        question, tab, and answers as a Python list of strings.

    Raises:
      UserError: a line cannot be used (with file and line), or there are no questions.
    """
    read = _read_json_questions if path.suffix == '.jsonl' else _read_tsv_questions
    rows = list(read(path))
    if not rows:
        raise UserError(f'{path}: has no questions')
    checked = [_get_checked_answers(where, answers) for where, _, answers in rows]
    return [question for _, question, _ in rows], checked


def _get_checked_answers(where: str, answers: object) -> list[str]:
    """Returns the answers. Raises UserError unless they are a nonempty list of strings."""
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) for answer in answers)
    ):
        raise UserError(f'{where}: a list of answers is expected, not {str(answers)[:60]!r}')
    return answers


def _read_json_questions(path: epath.Path) -> Iterator[tuple[str, str, object]]:
    """Yields ('file:line', question, answers)."""
    for where, row in read_json_lines(path):
        yield where, get_text_field(row, where, 'question'), row.get('answer', row.get('answers'))


def _read_tsv_questions(path: epath.Path) -> Iterator[tuple[str, str, object]]:
    """Yields ('file:line', question, answers) of each line of a tab-separated file."""
    for where, line in read_lines(path):
        question, answers = (_unquote(field) for field in line.partition('\t')[::2])
        try:
            yield where, question, ast.literal_eval(answers)
        except (ValueError, SyntaxError):
            raise UserError(
                f'{where}: a question, a tab and a list of answers such as ["a", "b"] are expected'
            ) from None


def read_passages(path: epath.Path, titles: bool = True) -> Iterator[Row]:
    """Yields DPR's passages from a tab-separated file with the columns id, text and title.

    Args:
      path: file of passages. Fields may be quoted as in CSV; a header is optional.
      titles: whether to put the title in front of the text.

    Raises:
      UserError: a line does not have three fields (with file and line).
    """
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [_unquote(field) for field in line.split('\t')]
        if len(fields) != 3:
            raise UserError(
                f'{where}: id, text and title are expected, separated by tabs, not {line[:60]!r}'
            )
        if number or fields != ['id', 'text', 'title']:
            name, text, title = fields
            yield Row(where, name, f'{title} {text}'.strip() if titles else text)


def _unquote(field: str) -> str:
    """Returns a CSV field without its quotes."""
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field


def mark_right_passages(
    hits: dict[str, Hits],
    positions_N: np.ndarray,
    passages: Iterable[Row],
    answers: list[list[str]],
) -> dict[str, np.ndarray]:
    """Returns bool[Q, k] of each ranking: whether the passage at that rank contains an answer.

    The passages are read in one pass, without keeping their texts in memory.

    Args:
      hits: hits of each ranking.
      positions_N: int, position of each passage, as in `Hits.documents_Qxk`.
      passages: passages without titles, in the order of `positions_N`.
      answers: accepted answers of each question.
    """
    wanted: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    right = {name: np.zeros(found.documents_Qxk.shape, bool) for name, found in hits.items()}
    for name, found in hits.items():
        for q, k in zip(*np.nonzero(found.scores_Qxk > -np.inf), strict=True):
            wanted[int(found.documents_Qxk[q, k])].append((name, q, k))
    normalized = [[make_searchable(answer) for answer in accepted] for accepted in answers]
    for position, row in zip(positions_N.tolist(), passages, strict=True):
        passage = make_searchable(row.text) if position in wanted else ''
        for name, q, k in wanted.get(position, ()):
            right[name][q, k] = contains_answer(normalized[q], passage)
    return right


def score_questions(right_Qxk: np.ndarray) -> dict[str, np.ndarray]:
    """Returns for each cutoff k whether the first k passages of a question have an answer, as
    float64 [Q]."""
    return {
        f'answer_recall@{k}': np.logical_or.reduce(right_Qxk[:, :k], axis=1).astype(np.float64)
        for k in CUTOFFS
    }


def average_questions(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the mean of each metric over the questions."""
    return {name: float(values_Q.mean()) for name, values_Q in scores.items()}


def _make_run(hits: Hits, passages: IndexedDocuments) -> Run:
    """Returns the ranking. The id of a question is its index."""
    rows = zip(hits.documents_Qxk.tolist(), hits.scores_Qxk.tolist(), strict=True)
    return {
        str(q): {passages.names[i]: score for i, score in zip(*row, strict=True) if score > -np.inf}
        for q, row in enumerate(rows)
    }


def _make_examples(
    questions: list[str],
    answers: list[list[str]],
    passages: IndexedDocuments,
    hits: dict[str, Hits],
    right: dict[str, np.ndarray],
) -> list[Example]:
    count = min(EXAMPLE_QUERIES, len(questions))
    chosen = np.sort(
        np.random.default_rng(SEED).choice(len(questions), count, replace=False)
    ).tolist()
    shown = {name: hits[name] for name in ('model', 'bm25') if name in hits}
    texts = passages.load_texts_at(
        {
            int(i)
            for found in shown.values()
            for i in found.documents_Qxk[chosen, :EXAMPLE_ANSWERS].ravel()
            if i >= 0
        }
    )

    def make_answers(name: str, q: int) -> Answers:
        if name not in shown:
            return Answers([], None)
        right_ranks = np.flatnonzero(right[name][q])
        best = zip(
            shown[name].documents_Qxk[q, :EXAMPLE_ANSWERS].tolist(),
            shown[name].scores_Qxk[q, :EXAMPLE_ANSWERS].tolist(),
            strict=True,
        )
        found = [
            FoundAnswer(cut_text(texts[i]), score, bool(right[name][q, k]))
            for k, (i, score) in enumerate(best)
            if score > -np.inf
        ]
        return Answers(found, int(right_ranks[0]) + 1 if len(right_ranks) else None)

    return [
        Example(
            questions[q],
            json.dumps(answers[q], ensure_ascii=False),
            make_answers('model', q),
            make_answers('bm25', q),
        )
        for q in chosen
    ]


KIND = TaskKind(
    name='openqa',
    find=find_open_qa,
    options=SearchOptions,
    layout=LAYOUT,
    folder='openqa/<name>/',
)
