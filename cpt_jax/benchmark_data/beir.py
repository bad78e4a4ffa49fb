"""Retrieval collections in one folder, in BEIR's format or as MS MARCO's original files."""

from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import NamedTuple

from etils import epath

from cpt_jax.runtime.errors import UserError
from cpt_jax.search.documents import IndexedDocuments, Row, load_texts_by_name
from cpt_jax.storage.json_checks import is_integer
from cpt_jax.storage.text_lines import (
    compute_file_fingerprint,
    find_paths,
    read_json_lines,
    read_lines,
)
from cpt_jax.text.corpus import join_title_and_text

MAX_DECIMALS = 6  # maximum decimals of a grade; some collections average grades of annotators
# A folder with this file is read in MS MARCO's original format.
OWN_FILES = 'collection.tsv'

# Query id -> document id -> grade; only grades above 0 are relevant.
Qrels = dict[str, dict[str, int]]


class Collection(NamedTuple):
    """A collection, with the queries that are scored.

    Attributes:
      documents: documents, with title + ' ' + text, stripped.
      query_ids: ids of the judged queries that have a relevant document.
      queries: texts of these queries.
      qrels: judgements of these queries. Grades are integers: fractions are multiplied by
        `grade_scale`, which does not change nDCG because that is linear in the grade.
      positions: index in `documents` by id, for the documents that are judged or have the same id
        as one of these queries.
      facts: counts and fingerprint, which are stored in the settings of a score.
      warnings: what is wrong with the judgements although they can be used.
    """

    documents: IndexedDocuments
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels
    positions: dict[str, int]
    facts: dict[str, object]
    warnings: tuple[str, ...]


class _Files(NamedTuple):
    """Files of a collection."""

    corpus: epath.Path
    queries: epath.Path
    qrels: epath.Path


def load_collection(folder: epath.Path, split: str) -> Collection:
    """Loads a collection.

    Raises:
      UserError: a file is missing or cannot be used; the message has file and line.
    """
    own = (folder / OWN_FILES).exists()
    files = _locate_msmarco_files(folder, split) if own else _locate_beir_files(folder, split)
    missing = [str(path.relative_to(folder)) for path in files if not path.exists()]
    if missing:
        corpus, queries_file, qrels_file = (path.relative_to(folder) for path in files)
        raise UserError(
            f'{folder}: no {", ".join(missing)}; a {"MS MARCO" if own else "BEIR"} folder has '
            f'{corpus}, {queries_file} and {qrels_file}'
        )
    read_rows = _read_tab_rows if own else read_json_rows
    documents = IndexedDocuments(files.corpus, partial(read_rows, files.corpus, titles=True))
    queries = load_texts_by_name(read_rows(files.queries, titles=False))
    judged, scale = read_qrels(files.qrels, queries, files.queries.name)
    qrels = {query: grades for query, grades in judged.items() if any(grades.values())}
    if not documents:
        raise UserError(f'{files.corpus}: the file has no documents')
    if not qrels:
        raise UserError(
            f'{files.qrels}: no document is relevant to any query: a grade above 0 is needed'
        )
    judged_documents = [name for grades in qrels.values() for name in grades]
    positions = documents.find_positions({*qrels, *judged_documents})
    relevant = {
        query: {name for name, grade in grades.items() if grade > 0}
        for query, grades in qrels.items()
    }
    warnings = (
        *_check_overlap(files, relevant, positions),
        *_check_own_ids(files, relevant, positions),
    )
    facts = {
        'documents': len(documents),
        'queries_without_positives': len(judged) - len(qrels),
        'judged_documents_not_in_corpus': sum(name not in positions for name in judged_documents),
        'grade_scale': scale,
        'data': compute_file_fingerprint(*files),
    }
    texts = [queries[query] for query in qrels]
    return Collection(documents, list(qrels), texts, qrels, positions, facts, warnings)


def _check_overlap(
    files: _Files, relevant: Mapping[str, set[str]], positions: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns a warning if some relevant documents are not in the corpus.

    Args:
      files: files of the collection.
      relevant: query -> its relevant documents, at least one.
      positions: index of the judged documents that are in the corpus, by id.

    Raises:
      UserError: no relevant document is in the corpus, so that every score would be 0.
    """
    names = set().union(*relevant.values())
    missing = sorted(name for name in names if name not in positions)
    if not missing:
        return ()
    corpus = files.corpus.name
    if len(missing) == len(names):
        raise UserError(
            f'{files.qrels}: none of its {len(names):,} relevant documents is in {corpus} (such as '
            f'{missing[0]!r}): the two files must name documents alike'
        )
    lost = sum(not any(name in positions for name in found) for found in relevant.values())
    return (
        f'{len(missing):,} of {len(names):,} relevant documents of {files.qrels.name} are not in '
        f'{corpus} (such as {missing[0]!r}): {lost:,} of {len(relevant):,} queries have none there '
        f'and score 0',
    )


def _check_own_ids(
    files: _Files, relevant: Mapping[str, set[str]], positions: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns a warning if a document with the id of its query is relevant to it.

    Such a document is removed from the results of the query, as in BEIR, where it is the query
    itself. In other data, queries and documents were numbered independently.

    Args:
      files: files of the collection.
      relevant: query -> its relevant documents, at least one.
      positions: index of the judged documents that are in the corpus, by id.

    Raises:
      UserError: no query has another relevant document in the corpus, so that every score would
        be 0.
    """
    own = sorted(query for query in relevant if query in relevant[query] and query in positions)
    if not own:
        return ()
    removed = (
        f'{len(own):,} of {len(relevant):,} queries of {files.qrels.name} have a relevant document '
        f'with the id of the query (such as {own[0]!r}), which is removed from their results as in '
        f'BEIR: if it is not the query itself, give the documents other ids than the queries'
    )
    others = {name for query, names in relevant.items() for name in names - {query}}
    if not any(name in positions for name in others):
        raise UserError(f'{files.qrels}: no relevant document is left: {removed}')
    return (removed,)


def _locate_beir_files(folder: epath.Path, split: str) -> _Files:
    return _Files(
        folder / 'corpus.jsonl', folder / 'queries.jsonl', folder / 'qrels' / f'{split}.tsv'
    )


def _locate_msmarco_files(folder: epath.Path, split: str) -> _Files:
    """Returns the files; 'dev' means dev.small, with the 6,980 queries of all published results."""
    part = 'dev.small' if split == 'dev' else split
    return _Files(folder / OWN_FILES, folder / f'queries.{part}.tsv', folder / f'qrels.{part}.tsv')


def check_judged(folder: epath.Path) -> None:
    """Raises UserError if a query has no judgement in any split, because it would not be scored.

    The message has file and line. `load_collection` reports all other errors in the files.
    """
    paths = find_paths(folder / 'qrels', '*.tsv')
    path = folder / 'queries.jsonl'
    judgements = [line.split('\t') for qrels in paths for _, line in read_lines(qrels)]
    are_columns = all(len(fields) in (3, 4) for fields in judgements)
    if not path.exists() or not judgements or not are_columns:
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
        splits = ', '.join(f'qrels/{qrels.name}' for qrels in paths)
        raise UserError(
            f'{where}: the query {name!r} has no judgement in {splits}{others}: add one, remove '
            'the query, or exclude such queries with --unjudged=skip'
        )


def read_texts(path: epath.Path, titles: bool) -> dict[str, str]:
    """Returns texts by id from a .jsonl file, see `read_json_rows`."""
    return load_texts_by_name(read_json_rows(path, titles))


def read_json_rows(path: epath.Path, titles: bool) -> Iterator[Row]:
    """Yields the rows of a .jsonl file.

    Ids are strings, so '007' and '7' differ. A title may be missing or null, a text empty.

    Args:
      path: corpus.jsonl or queries.jsonl.
      titles: whether rows have titles, which are put before their texts.
    """
    for where, row in read_json_lines(path):
        name = row.get('_id')
        is_name = isinstance(name, str) or is_integer(name)
        if not is_name or not isinstance(row.get('text'), str):
            raise UserError(
                f'{where}: the fields "_id" and "text" are expected, and text must be a string'
            )
        if titles and not isinstance(row.get('title'), str | None):
            raise UserError(f'{where}: the field "title" must be a string or null')
        yield Row(
            where, str(row['_id']), join_title_and_text(row) if titles else row['text'].strip()
        )


def _read_tab_rows(path: epath.Path, titles: bool) -> Iterator[Row]:
    """Yields the rows of collection.tsv or queries.*.tsv: an id, a tab and a text.

    Args:
      path: the file.
      titles: not used; such files have no titles.
    """
    for where, line in read_lines(path):
        name, tab, text = line.partition('\t')
        if not tab or not name:
            raise UserError(f'{where}: an id, a tab and a text are expected, not {line[:60]!r}')
        yield Row(where, name, text.strip())


def read_qrels(path: epath.Path, queries: dict[str, str], queries_file: str) -> tuple[Qrels, int]:
    """Reads judgements.

    A line is query id, document id, grade, or in TREC format query id, 0, document id, grade. The
    first line is skipped as a header if its grade is not a number. Grades below 0 become 0.

    Args:
      path: the file.
      queries: query texts by id.
      queries_file: name of their file, for messages.

    Returns:
      Judgements, and the factor that makes their grades integers.

    Raises:
      UserError: a line has another format, a query is unknown, or a pair has two grades; the
        message has file and line.
    """
    judged: dict[str, dict[str, Decimal]] = {}
    unknown: dict[str, str] = {}
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [field.strip() for field in line.split('\t')]
        has_columns = len(fields) in (3, 4)
        grade = _parse_grade(fields[-1]) if has_columns else None
        if grade is None and number == 0 and has_columns:
            continue
        if grade is None:
            raise UserError(
                f'{where}: query id, document id and a grade are expected, separated by tabs, not '
                f'{line[:60]!r}'
            )
        query = fields[0]
        document = fields[-2]
        if query not in queries:
            unknown.setdefault(query, where)
        if judged.setdefault(query, {}).setdefault(document, grade) != grade:
            raise UserError(
                f'{where}: query {query!r} and document {document!r} have a different grade on an '
                f'earlier line'
            )
    if unknown:
        query, where = next(iter(unknown.items()))
        raise UserError(
            f'{where}: the query {query!r} is not in {queries_file}; {len(unknown):,} of the '
            f'{len(judged):,} judged queries are not: add them, or remove their judgements'
        )
    all_grades = [grade for grades in judged.values() for grade in grades.values()]
    decimals = max((_count_decimals(grade) for grade in all_grades), default=0)
    scale = 10 ** max(decimals, 0)
    qrels = {
        query: {name: int(grade * scale) for name, grade in grades.items()}
        for query, grades in judged.items()
    }
    return qrels, scale


def _count_decimals(grade: Decimal) -> int:
    """Returns the number of decimals; negative for multiples of 10."""
    return -int(grade.as_tuple().exponent)


def _parse_grade(text: str) -> Decimal | None:
    """Returns a grade, at least 0; None if it is not a number or has too many decimals."""
    try:
        grade = max(Decimal(text), Decimal(0)).normalize()
    except InvalidOperation:
        return None
    if not grade.is_finite() or _count_decimals(grade) > MAX_DECIMALS:
        return None
    return grade
