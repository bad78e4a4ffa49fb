"""Retrieval collections as BEIR stores them, or MS MARCO's own files, in one folder."""

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import NamedTuple

from etils import epath

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.documents import IndexedDocuments, Row, texts_by_name
from cpt_jax.storage.text_lines import file_fingerprint, read_json_lines, read_lines
from cpt_jax.text.corpus import document_text

MAX_DECIMALS = 6  # of a grade, which is an average of annotators where it has any
OWN_FILES = 'collection.tsv'  # what a folder of MS MARCO passages has, as Microsoft gives it out

# Query id -> document id -> grade; only grades above 0 are relevant.
Qrels = dict[str, dict[str, int]]


class Collection(NamedTuple):
    """A collection as it is scored.

    Attributes:
      documents: title + ' ' + text of each, stripped.
      query_ids: the judged queries that have a relevant document.
      queries: their texts.
      qrels: the judgements of these queries. Grades are whole numbers: fractions are multiplied by
        `grade_scale`, which nDCG, linear in the grade, does not see.
      positions: of the documents that have the id of one of these queries, or that are judged.
      facts: counts that belong to the settings of a score.
    """

    documents: IndexedDocuments
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels
    positions: dict[str, int]
    facts: dict[str, object]


class _Files(NamedTuple):
    """Where a collection stands."""

    corpus: epath.Path
    queries: epath.Path
    qrels: epath.Path


def load_collection(folder: epath.Path, split: str) -> Collection:
    """Reads a folder. Raises UserError with file and line for what cannot be used."""
    own = (folder / OWN_FILES).exists()
    files = _own_files(folder, split) if own else _beir_files(folder, split)
    missing = [str(path.relative_to(folder)) for path in files if not path.exists()]
    if missing:
        expected = (
            ', '.join(str(path.relative_to(folder)) for path in files[:2])
            + f' and {files.qrels.relative_to(folder)}'
        )
        raise UserError(
            f'{folder}: no {", ".join(missing)}; a {"MS MARCO" if own else "BEIR"} folder has '
            f'{expected}'
        )
    rows = _tab_rows if own else json_rows
    documents = IndexedDocuments(files.corpus, partial(rows, files.corpus, titles=True))
    queries = texts_by_name(rows(files.queries, titles=False))
    judged, scale = read_qrels(files.qrels, queries, files.queries.name)
    qrels = {query: grades for query, grades in judged.items() if any(grades.values())}
    if not qrels or not documents:
        where = files.qrels if documents else files.corpus
        raise UserError(f'{where}: nothing to score: no {"relevant" if documents else ""} document')
    positions = documents.positions_of(
        {*qrels, *(name for grades in qrels.values() for name in grades)}
    )
    facts = {
        'documents': len(documents),
        'queries_without_positives': len(judged) - len(qrels),
        'judged_documents_not_in_corpus': sum(
            name not in positions for grades in qrels.values() for name in grades
        ),
        'grade_scale': scale,
        'data': file_fingerprint(*files),
    }
    return Collection(
        documents, list(qrels), [queries[query] for query in qrels], qrels, positions, facts
    )


def _beir_files(folder: epath.Path, split: str) -> _Files:
    return _Files(
        folder / 'corpus.jsonl', folder / 'queries.jsonl', folder / 'qrels' / f'{split}.tsv'
    )


def _own_files(folder: epath.Path, split: str) -> _Files:
    """'dev' are the 6,980 queries of dev.small, which all tables are of."""
    part = 'dev.small' if split == 'dev' else split
    return _Files(folder / OWN_FILES, folder / f'queries.{part}.tsv', folder / f'qrels.{part}.tsv')


def check_judged(folder: epath.Path) -> None:
    """Raises UserError, with file and line, for a query that has no judgement in any of the
    folder's splits: nothing would score it.

    Whatever else may be wrong with the files is left to `load_collection`.
    """
    paths, path = sorted((folder / 'qrels').glob('*.tsv')), folder / 'queries.jsonl'
    judgements = [line.split('\t') for qrels in paths for _, line in read_lines(qrels)]
    if not path.exists() or not judgements or any(len(fields) != 3 for fields in judgements):
        return
    judged = {query.strip() for query, *_ in judgements}
    missing = [
        (where, row['_id'])
        for where, row in read_json_lines(path)
        if '_id' in row and str(row['_id']) not in judged
    ]
    if missing:
        where, name = missing[0]
        others = f' (nor have {len(missing) - 1} others)' if len(missing) > 1 else ''
        raise UserError(
            f'{where}: the query {name!r} has no judgement in '
            f'{", ".join(f"qrels/{qrels.name}" for qrels in paths)}{others}: judge it, remove it, '
            'or leave such queries out of the scores with --unjudged=skip'
        )


def read_texts(path: epath.Path, titles: bool) -> dict[str, str]:
    """Id -> text of a .jsonl file. Ids are strings, so that '007' stays itself; a title may be
    missing or null, a document empty.
    """
    return texts_by_name(json_rows(path, titles))


def json_rows(path: epath.Path, titles: bool) -> Iterator[Row]:
    """The rows of corpus.jsonl or, without titles, of queries.jsonl."""
    for where, row in read_json_lines(path):
        if not isinstance(row.get('_id'), str | int) or not isinstance(row.get('text'), str):
            raise UserError(
                f'{where}: the fields "_id" and "text" are expected, and text must be a string'
            )
        yield Row(where, str(row['_id']), document_text(row) if titles else row['text'].strip())


def _tab_rows(path: epath.Path, titles: bool) -> Iterator[Row]:
    """The rows of collection.tsv or queries.*.tsv: an id, a tab and the text; there are no
    titles.
    """
    for where, line in read_lines(path):
        name, tab, text = line.partition('\t')
        if not tab or not name:
            raise UserError(f'{where}: an id, a tab and a text are expected, not {line[:60]!r}')
        yield Row(where, name, text.strip())


def read_qrels(path: epath.Path, queries: dict[str, str], queries_file: str) -> tuple[Qrels, int]:
    """The judgements, and what their grades were multiplied by; grades below 0 become 0.

    A first line whose grade is no number is the header; it may be missing. Raises UserError with
    file and line for a line that is not query id, document id, grade (in TREC's form query id, 0,
    document id, grade), for a query that is not in `queries` and for two grades of one pair.
    """
    judged: dict[str, dict[str, Decimal]] = {}
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [field.strip() for field in line.split('\t')]
        grade = _grade(fields[-1]) if len(fields) in (3, 4) else None
        if grade is None and number == 0 and len(fields) in (3, 4):
            continue
        if grade is None:
            raise UserError(
                f'{where}: query id, document id and a grade are expected, separated by tabs, not '
                f'{line[:60]!r}'
            )
        query, document = fields[0], fields[-2]
        if query not in queries:
            raise UserError(f'{where}: the query {query!r} is not in {queries_file}')
        if judged.setdefault(query, {}).setdefault(document, grade) != grade:
            raise UserError(
                f'{where}: query {query!r} and document {document!r} have another grade on an '
                f'earlier line'
            )
    decimals = max(
        (
            -int(grade.as_tuple().exponent)
            for grades in judged.values()
            for grade in grades.values()
        ),
        default=0,
    )
    scale = 10 ** max(decimals, 0)
    return {
        query: {name: int(grade * scale) for name, grade in grades.items()}
        for query, grades in judged.items()
    }, scale


def _grade(text: str) -> Decimal | None:
    try:
        grade = max(Decimal(text), Decimal(0)).normalize()
    except InvalidOperation:
        return None
    return grade if grade.is_finite() and -int(grade.as_tuple().exponent) <= MAX_DECIMALS else None
