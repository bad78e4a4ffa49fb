"""Open-domain questions: in how many of them one of the first k passages holds an answer (NQ and TriviaQA, as DPR measures)."""

import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.answers import occurs, searchable
from cpt_jax.evals.documents import Documents, Row
from cpt_jax.evals.ranking import Hits
from cpt_jax.evals.rows import file_fingerprint, read_json_lines, read_lines, text_field
from cpt_jax.evals.searcher import EXACT, SEED, Searcher, recall_against
from cpt_jax.evals.task import EXAMPLES, SHOWN, Answers, Embed, Example, Found, Result, library_versions, shown
from cpt_jax.evals.trec_run import Run, write_run

CUTOFFS = 20, 100
PASSAGES = 'psgs_w100.tsv'
LAYOUT = f"openqa/<name>/ with questions.jsonl (or DPR's questions.csv), and {PASSAGES} there or in openqa/"

PROTOCOL = (
    "DPR's answer recall: share of the questions for which one of the first k passages holds an answer, token for token, in NFD and lower "
    'case; titles are embedded and not searched'
)


@dataclass(frozen=True)
class OpenQa:
    """One set of questions.

    Attributes:
      name: of the task, such as 'openqa/nq'.
      questions, passages: the files.
      k: passages kept for each question, 100 or more.
      searcher: what looks for them.
      runs: where the model's ranking is written, as `<name>.trec`; None: nowhere.
    """

    name: str
    questions: epath.Path
    passages: epath.Path
    k: int = 100
    searcher: Searcher = EXACT
    runs: epath.Path | None = None

    def run(self, embed: Embed) -> Result:
        questions, answers = read_questions(self.questions)
        passages = Documents(self.passages, partial(passage_rows, self.passages))
        if not passages.names:
            raise UserError(f'{self.passages}: holds no passage')
        searched = self.searcher.search(embed, passages, questions, max(self.k, *CUTOFFS))
        if self.runs:
            write_run(self.runs / f'{self.name}.trec', _to_run(searched.hits['model'], passages))
        right = right_answers(searched.hits, passages.positions_N, passage_rows(self.passages, titles=False), answers)
        metrics = {name: answer_recall(right_QxK) for name, right_QxK in right.items()}
        if searched.exact:
            metrics['model'][f'recall_vs_exact@{searched.exact.documents_QxK.shape[1]}'] = recall_against(
                searched.exact, searched.hits['model']
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

    def _settings(self, passages: Documents) -> dict[str, object]:
        return {
            'protocol': PROTOCOL,
            'direction': 'question to passage',
            'similarity': 'dot product of unit vectors, float32',
            'text': "title + ' ' + text, stripped",
            'k': self.k,
            'documents': len(passages),
            'data': file_fingerprint(self.questions, self.passages),
            'libraries': library_versions('bm25s'),
        }


def find_tasks(data_dir: epath.Path | None, k: int = 100, searcher: Searcher = EXACT, runs: epath.Path | None = None) -> dict[str, OpenQa]:
    """The tasks that can be run, by name: one for each folder of `data_dir`/openqa with questions."""
    tasks: dict[str, OpenQa] = {}
    for path in sorted((data_dir / 'openqa').glob('*/questions.*')) if data_dir else ():
        if path.suffix in ('.jsonl', '.csv'):
            name = f'openqa/{path.parent.name}'
            if name in tasks:
                raise UserError(f'{path}: the task {name} would have two files of questions: remove one of them')
            own = path.parent / PASSAGES
            tasks[name] = OpenQa(name, path, own if own.exists() else data_dir / 'openqa' / PASSAGES, k, searcher, runs)
    return tasks


def read_questions(path: epath.Path) -> tuple[list[str], list[list[str]]]:
    """Questions, and the answers that count for each.

    Args:
      path: .jsonl with "question" and "answer" or "answers" (NQ-open), or DPR's .csv: question, tab, a list of strings as Python writes it.

    Raises UserError with file and line for what cannot be used.
    """
    rows = list(_json_questions(path) if path.suffix == '.jsonl' else _csv_questions(path))
    if not rows:
        raise UserError(f'{path}: holds no question')
    for where, _, answers in rows:
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise UserError(f'{where}: a list of answers is expected, not {str(answers)[:60]!r}')
    return [question for _, question, _ in rows], [answers for _, _, answers in rows]


def _json_questions(path: epath.Path) -> Iterator[tuple[str, str, object]]:
    for where, row in read_json_lines(path):
        yield where, text_field(row, where, 'question'), row.get('answer', row.get('answers'))


def _csv_questions(path: epath.Path) -> Iterator[tuple[str, str, object]]:
    for where, line in read_lines(path):
        question, answers = (_unquoted(field) for field in line.partition('\t')[::2])
        try:
            yield where, question, ast.literal_eval(answers)
        except (ValueError, SyntaxError):
            raise UserError(f'{where}: a question, a tab and a list of answers such as ["a", "b"] are expected') from None


def passage_rows(path: epath.Path, titles: bool = True) -> Iterator[Row]:
    """The rows of DPR's passages: id, text, title, with tabs between them and quotes as a CSV file has them; the first line names them."""
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [_unquoted(field) for field in line.split('\t')]
        if len(fields) != 3:
            raise UserError(f'{where}: id, text and title are expected, separated by tabs, not {line[:60]!r}')
        if number or fields != ['id', 'text', 'title']:
            name, text, title = fields
            yield Row(where, name, f'{title} {text}'.strip() if titles else text)


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def right_answers(
    hits: dict[str, Hits], positions_N: np.ndarray, passages: Iterable[Row], answers: list[list[str]]
) -> dict[str, np.ndarray]:
    """bool[Q, K] of each ranking: whether the passage in that place holds an answer. The passages are read once, and no text is kept.

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


def _to_run(hits: Hits, passages: Documents) -> Run:
    """Questions are numbered, from 0."""
    rows = zip(hits.documents_QxK.tolist(), hits.scores_QxK.tolist(), strict=True)
    return {str(q): {passages.names[i]: score for i, score in zip(*row, strict=True) if score > -np.inf} for q, row in enumerate(rows)}


def _examples(
    questions: list[str], answers: list[list[str]], passages: Documents, hits: dict[str, Hits], right: dict[str, np.ndarray]
) -> list[Example]:
    count = min(EXAMPLES, len(questions))
    chosen = np.sort(np.random.default_rng(SEED).choice(len(questions), count, replace=False)).tolist()
    kept = {name: hits[name] for name in ('model', 'bm25') if name in hits}
    texts = passages.texts_at({int(i) for found in kept.values() for i in found.documents_QxK[chosen, :SHOWN].ravel() if i >= 0})

    def of(name: str, q: int) -> Answers:
        if name not in kept:
            return Answers([], None)
        places = np.flatnonzero(right[name][q])
        best = zip(kept[name].documents_QxK[q, :SHOWN].tolist(), kept[name].scores_QxK[q, :SHOWN].tolist(), strict=True)
        found = [Found(shown(texts[i]), score, bool(right[name][q, k])) for k, (i, score) in enumerate(best) if score > -np.inf]
        return Answers(found, int(places[0]) + 1 if len(places) else None)

    return [Example(questions[q], json.dumps(answers[q], ensure_ascii=False), of('model', q), of('bm25', q)) for q in chosen]
