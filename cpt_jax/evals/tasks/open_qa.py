"""Open-domain questions: in how many of them one of the first k passages holds an answer (NQ and
TriviaQA, as DPR measures).
"""

import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.answers import occurs, searchable
from cpt_jax.embed.function import Embed
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import SearchOptions
from cpt_jax.evals.report.example import (
    EXAMPLE_ANSWERS,
    EXAMPLE_QUERIES,
    Answers,
    Example,
    Found,
    cut_text,
)
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.documents import IndexedDocuments, Row
from cpt_jax.search.ranking import Hits
from cpt_jax.search.searcher import SEED, recall_against
from cpt_jax.search.trec_run import Run, write_run
from cpt_jax.storage.text_lines import file_fingerprint, read_json_lines, read_lines, text_field

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
    """One set of questions.

    Attributes:
      name: name of the task, such as 'openqa/nq'.
      questions, passages: the files.
      options: options of the kind; 100 passages or more are kept for each question.
      runs: directory for the model's ranking, as `<name>.trec`; None: write none.
    """

    name: str
    questions: epath.Path
    passages: epath.Path
    options: SearchOptions = SearchOptions()
    runs: epath.Path | None = None

    def fingerprint(self) -> str:
        own = self.questions.parent
        # The passages may be next to the questions or one folder above, shared by several sets.
        files = [*own.glob('*'), *own.parent.glob('*')]
        return fingerprint_task(self.name, self.options, fingerprint_files(files))

    def run(self, embed: Embed) -> Result:
        questions, answers = read_questions(self.questions)
        passages = IndexedDocuments(self.passages, partial(passage_rows, self.passages))
        if not passages.names:
            raise UserError(f'{self.passages}: holds no passage')
        k = max(self.options.k, *CUTOFFS)
        searched = self.options.searcher.search(embed, passages, questions, k)
        if self.runs:
            write_run(self.runs / f'{self.name}.trec', _to_run(searched.hits['model'], passages))
        right = right_answers(
            searched.hits, passages.positions_N, passage_rows(self.passages, titles=False), answers
        )
        metrics = {name: answer_recall(right_QxK) for name, right_QxK in right.items()}
        if searched.exact:
            metrics['model'][f'recall_vs_exact@{searched.exact.documents_QxK.shape[1]}'] = (
                recall_against(searched.exact, searched.hits['model'])
            )
        return Result(
            metric=f'answer_recall@{CUTOFFS[0]}',
            metrics=metrics.pop('model'),
            n=len(questions),
            settings=self._settings(passages) | searched.settings,
            baselines=metrics,
            examples=_examples(questions, answers, passages, searched.hits, right),
            counted='questions',
        )

    def _settings(self, passages: IndexedDocuments) -> dict[str, object]:
        return {
            'protocol': PROTOCOL,
            'direction': 'question to passage',
            'similarity': 'dot product of unit vectors, float32',
            'text': "title + ' ' + text, stripped",
            'k': self.options.k,
            'documents': len(passages),
            'data': file_fingerprint(self.questions, self.passages),
            'libraries': library_versions('bm25s'),
        }


def find_open_qa(
    data_dir: epath.Path | None, options: SearchOptions, context: Context
) -> dict[str, Task]:
    """Returns a task for each folder of `data_dir`/openqa that has questions."""
    home = data_dir / 'openqa' if data_dir else None
    paths = sorted(home.glob('*/questions.*')) if home else []
    tasks: dict[str, Task] = {}
    for path in paths:
        if path.suffix in ('.jsonl', '.csv'):
            name = f'{KIND.name}/{path.parent.name}'
            if name in tasks:
                raise UserError(
                    f'{path}: the task {name} would have two files of questions: remove one of them'
                )
            tasks[name] = OpenQa(
                name,
                path,
                _passages_of(path.parent),
                options,
                context.runs if options.trec_runs else None,
            )
    return tasks


def _passages_of(folder: epath.Path) -> epath.Path:
    """The passages in the folder itself, or else those that all sets of questions share."""
    own = folder / PASSAGES
    return own if own.exists() else folder.parent / PASSAGES


def read_questions(path: epath.Path) -> tuple[list[str], list[list[str]]]:
    """Questions, and the answers that count for each.

    Args:
      path: .jsonl with "question" and "answer" or "answers" (NQ-open), or DPR's .csv: question,
        tab, a list of strings as Python writes it.

    Raises UserError with file and line for what cannot be used.
    """
    rows = list(_json_questions(path) if path.suffix == '.jsonl' else _csv_questions(path))
    if not rows:
        raise UserError(f'{path}: holds no question')
    checked = [_check_answers(where, answers) for where, _, answers in rows]
    return [question for _, question, _ in rows], checked


def _check_answers(where: str, answers: object) -> list[str]:
    """The answers, if they are a list of texts with one or more."""
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) for answer in answers)
    ):
        raise UserError(f'{where}: a list of answers is expected, not {str(answers)[:60]!r}')
    return answers


def _json_questions(path: epath.Path) -> Iterator[tuple[str, str, object]]:
    for where, row in read_json_lines(path):
        yield where, text_field(row, where, 'question'), row.get('answer', row.get('answers'))


def _csv_questions(path: epath.Path) -> Iterator[tuple[str, str, object]]:
    for where, line in read_lines(path):
        question, answers = (_unquoted(field) for field in line.partition('\t')[::2])
        try:
            yield where, question, ast.literal_eval(answers)
        except (ValueError, SyntaxError):
            raise UserError(
                f'{where}: a question, a tab and a list of answers such as ["a", "b"] are expected'
            ) from None


def passage_rows(path: epath.Path, titles: bool = True) -> Iterator[Row]:
    """The rows of DPR's passages: id, text, title, with tabs between them and quotes as a CSV file
    has them; the first line names them.
    """
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [_unquoted(field) for field in line.split('\t')]
        if len(fields) != 3:
            raise UserError(
                f'{where}: id, text and title are expected, separated by tabs, not {line[:60]!r}'
            )
        if number or fields != ['id', 'text', 'title']:
            name, text, title = fields
            yield Row(where, name, f'{title} {text}'.strip() if titles else text)


def _unquoted(field: str) -> str:
    return (
        field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field
    )


def right_answers(
    hits: dict[str, Hits],
    positions_N: np.ndarray,
    passages: Iterable[Row],
    answers: list[list[str]],
) -> dict[str, np.ndarray]:
    """bool[Q, K] of each ranking: whether the passage in that place holds an answer. The passages
    are read once, and no text is kept.

    Args:
      hits: of each ranking.
      positions_N, passages: their positions and themselves, without titles.
      answers: of each question.
    """
    wanted: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    right = {name: np.zeros(found.documents_QxK.shape, bool) for name, found in hits.items()}
    for name, found in hits.items():
        for q, k in zip(*np.nonzero(found.scores_QxK > -np.inf), strict=True):
            wanted[int(found.documents_QxK[q, k])].append((name, q, k))
    looked_for = [[searchable(answer) for answer in those] for those in answers]
    for position, row in zip(positions_N.tolist(), passages, strict=True):
        passage = searchable(row.text) if position in wanted else ''
        for name, q, k in wanted.get(position, ()):
            right[name][q, k] = occurs(looked_for[q], passage)
    return right


def answer_recall(right_QxK: np.ndarray) -> dict[str, float]:
    """Means over the questions."""
    return {f'answer_recall@{k}': float(right_QxK[:, :k].any(axis=1).mean()) for k in CUTOFFS}


def _to_run(hits: Hits, passages: IndexedDocuments) -> Run:
    """Questions are numbered, from 0."""
    rows = zip(hits.documents_QxK.tolist(), hits.scores_QxK.tolist(), strict=True)
    return {
        str(q): {passages.names[i]: score for i, score in zip(*row, strict=True) if score > -np.inf}
        for q, row in enumerate(rows)
    }


def _examples(
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
    kept = {name: hits[name] for name in ('model', 'bm25') if name in hits}
    texts = passages.texts_at(
        {
            int(i)
            for found in kept.values()
            for i in found.documents_QxK[chosen, :EXAMPLE_ANSWERS].ravel()
            if i >= 0
        }
    )

    def of(name: str, q: int) -> Answers:
        if name not in kept:
            return Answers([], None)
        places = np.flatnonzero(right[name][q])
        best = zip(
            kept[name].documents_QxK[q, :EXAMPLE_ANSWERS].tolist(),
            kept[name].scores_QxK[q, :EXAMPLE_ANSWERS].tolist(),
            strict=True,
        )
        found = [
            Found(cut_text(texts[i]), score, bool(right[name][q, k]))
            for k, (i, score) in enumerate(best)
            if score > -np.inf
        ]
        return Answers(found, int(places[0]) + 1 if len(places) else None)

    return [
        Example(
            questions[q], json.dumps(answers[q], ensure_ascii=False), of('model', q), of('bm25', q)
        )
        for q in chosen
    ]


KIND = Kind(
    name='openqa',
    find=find_open_qa,
    options=SearchOptions,
    layout=LAYOUT,
    folder='openqa/<name>/',
)
