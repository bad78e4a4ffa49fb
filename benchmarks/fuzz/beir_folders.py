"""Damaged BEIR folders, compared with a reader of its own and with pytrec_eval."""

import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import Any

from fuzz.outcome import Outcome, choose_value, damage_bytes, judge

IDS = ('d1', 'd2', 'd3', '1', '01', '007', '7', 'Ж', 'a b', 'q1')
GRADES = ('1', '1', '2', '0', '-1', '0.5', '1e1', '3.25')
BAD_GRADES = ('high', 'nan', '1.1234567', 'inf', '', '7')
Grades = dict[str, dict[str, Decimal]]


def fuzz_folders(random: Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Yields the outcome of each of `count` folders in BEIR's layout."""
    from etils import epath

    from cpt_jax.benchmark_data.beir import load_collection

    files = [folder / 'corpus.jsonl', folder / 'queries.jsonl', folder / 'qrels' / 'test.tsv']
    files[2].parent.mkdir(exist_ok=True)
    for number in range(count):
        contents = _make_files(random)
        for path, data in zip(files, contents, strict=True):
            path.write_bytes(data)
        expected = _read_files(*contents)
        scores = {name: random.randrange(5) / 4 for name in IDS}

        def read(expected=expected, scores=scores) -> str:
            return _compare(lambda: load_collection(epath.Path(folder), 'test'), expected, scores)

        yield judge('beir', f'folder {number}: {contents!r:.400}', read)


def _compare(load, expected: Grades | None, scores: dict[str, float]) -> str:
    """Returns how a collection and its metrics differ from those expected; '' if they do not."""
    import pytrec_eval

    from cpt_jax.evals.tasks.retrieval import score_run
    from cpt_jax.runtime.errors import UserError

    try:
        collection = load()
    except UserError as error:
        if expected is not None:
            return f'refused, although it is valid: {error}'
        raise
    if expected is None:
        return 'read, although it is not valid'
    scale = collection.facts['grade_scale']
    grades = {
        query: {name: int(grade * scale) for name, grade in judged.items()}
        for query, judged in expected.items()
    }
    if collection.qrels != grades:
        return f'judgements {collection.qrels}, expected {grades}'
    run = {query: dict(scores) for query in grades}
    measures = {'ndcg@10': 'ndcg_cut_10', 'recall@5': 'recall_5'}
    found = score_run(run, collection.qrels, 5)
    rows = pytrec_eval.RelevanceEvaluator(grades, {'ndcg_cut.10', 'recall.5'}).evaluate(run)
    for ours, theirs in measures.items():
        mean = sum(row[theirs] for row in rows.values()) / len(rows)
        if abs(found[ours] - mean) > 1e-9:
            return f'{ours}={found[ours]}, pytrec_eval has {mean}'
    return ''


def _make_files(random: Random) -> list[bytes]:
    documents = random.sample(IDS, random.randrange(1, len(IDS)))
    queries = random.sample(IDS, random.randrange(1, 6))
    corpus = [
        {'_id': name, 'title': random.choice(['', None, 't']), 'text': 'x'} for name in documents
    ]
    asked = [{'_id': name, 'text': 'what'} for name in queries]
    judged = [
        '\t'.join([random.choice(queries), *random.choice([[], ['0']]), random.choice(documents),
                   random.choice(GRADES)])
        for _ in range(random.randrange(1, 10))
    ]  # fmt: skip
    judged = list(
        {line.rpartition('\t')[0].replace('\t0\t', '\t'): line for line in judged}.values()
    )
    if random.random() < 0.1:
        judged.append(judged[0].rpartition('\t')[0] + '\t' + random.choice(BAD_GRADES))
    if random.random() < 0.1:
        judged.append(f'{random.choice([*queries, "no query"])}\tno document\t1')
    if random.random() < 0.3:
        judged.insert(0, 'query-id\tcorpus-id\tscore')
    if random.random() < 0.1:
        row: Any = random.choice(corpus + asked)
        row[random.choice(['_id', 'text', 'title'])] = choose_value(random)
    files = [
        '\n'.join(json.dumps(row) for row in corpus).encode(),
        '\n'.join(json.dumps(row) for row in asked).encode(),
        '\n'.join(judged).encode() + b'\n',
    ]
    if random.random() < 0.2:
        index = random.randrange(3)
        files[index] = damage_bytes(random, files[index])
    return files


def _read_files(corpus: bytes, queries: bytes, qrels: bytes) -> Grades | None:
    """Returns the judgements of the queries with a relevant document; None if a file is not valid,
    or if no document of the corpus is relevant to a query with another id.
    """
    documents = _read_ids(corpus, titles=True)
    asked = _read_ids(queries, titles=False)
    judged = _read_grades(qrels)
    if not documents or asked is None or judged is None or not {*judged} <= {*asked}:
        return None
    kept = {query: grades for query, grades in judged.items() if any(grades.values())}
    pairs = [
        (query, name) for query, grades in kept.items() for name, grade in grades.items() if grade
    ]
    return kept if any(query != name and name in documents for query, name in pairs) else None


def _read_ids(data: bytes, titles: bool) -> list[str] | None:
    """Returns the ids in a .jsonl file; None if a line is not valid."""
    try:
        rows = [json.loads(line) for line in _read_lines(data)]
    except ValueError:
        return None
    names = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get('text'), str):
            return None
        if not isinstance(row.get('_id'), str | int) or isinstance(row['_id'], bool):
            return None
        if titles and not isinstance(row.get('title'), str | None):
            return None
        names.append(str(row['_id']))
    return names if len(names) == len(set(names)) else None


def _read_grades(data: bytes) -> Grades | None:
    """Returns the grades in a file of judgements; None if a line is not valid."""
    try:
        lines = _read_lines(data)
    except ValueError:
        return None
    judged: Grades = {}
    for number, line in enumerate(lines):
        fields = [field.strip() for field in line.split('\t')]
        grade = _read_grade(fields[-1])
        if grade is None and number == 0 and len(fields) in (3, 4):
            continue
        if grade is None or len(fields) not in (3, 4):
            return None
        if judged.setdefault(fields[0], {}).setdefault(fields[-2], grade) != grade:
            return None
    return judged


def _read_lines(data: bytes) -> list[str]:
    """Returns the lines that are not blank, each without a byte-order mark."""
    return [line.decode('utf-8-sig') for line in data.split(b'\n') if line.strip()]


def _read_grade(text: str) -> Decimal | None:
    try:
        grade = Decimal(text)
    except InvalidOperation:
        return None
    if not grade.is_finite() or (grade > 0 and grade != round(grade, 6)):
        return None
    return max(grade, Decimal(0))
