"""Retrieval collections as BEIR stores them: corpus.jsonl, queries.jsonl and qrels/<split>.tsv in one folder."""

from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.rows import file_fingerprint, read_json_lines, read_lines

MAX_DECIMALS = 6  # of a grade, which is an average of annotators where it has any

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade; only grades above 0 are relevant


class Collection(NamedTuple):
    """A collection as it is scored.

    Attributes:
      document_ids: in descending order of their UTF-8 bytes, which is how trec_eval breaks ties.
      documents: title + ' ' + text of each, stripped.
      query_ids: the judged queries that have a relevant document.
      queries: their texts.
      qrels: the judgements of these queries. Grades are whole numbers: fractions are multiplied by `grade_scale`, which
        nDCG, linear in the grade, does not see.
      facts: counts that belong to the settings of a score.
    """

    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels
    facts: dict[str, object]


def load_collection(folder: epath.Path, split: str) -> Collection:
    """Reads a folder. Raises UserError with file and line for what cannot be used."""
    paths = [folder / 'corpus.jsonl', folder / 'queries.jsonl', folder / 'qrels' / f'{split}.tsv']
    missing = [str(path.relative_to(folder)) for path in paths if not path.exists()]
    if missing:
        raise UserError(f'{folder}: no {", ".join(missing)}; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/{split}.tsv')
    corpus_path, queries_path, qrels_path = paths
    documents = read_texts(corpus_path, titles=True)
    queries = read_texts(queries_path, titles=False)
    judged, scale = read_qrels(qrels_path, queries)
    qrels = {query: grades for query, grades in judged.items() if any(grades.values())}
    if not qrels or not documents:
        raise UserError(f'{qrels_path if documents else corpus_path}: nothing to score: no {"relevant" if documents else ""} document')
    document_ids = sorted(documents, key=str.encode, reverse=True)
    facts = {
        'documents': len(documents),
        'queries_without_positives': len(judged) - len(qrels),
        'judged_documents_not_in_corpus': sum(document not in documents for grades in qrels.values() for document in grades),
        'grade_scale': scale,
        'data': file_fingerprint(*paths),
    }
    texts = [documents[document] for document in document_ids]
    return Collection(document_ids, texts, list(qrels), [queries[query] for query in qrels], qrels, facts)


def read_texts(path: epath.Path, titles: bool) -> dict[str, str]:
    """Id -> text. Ids are strings, so that '007' stays itself; a title may be missing or null, a document empty."""
    texts = {}
    for where, row in read_json_lines(path):
        if not isinstance(row.get('_id'), str | int) or not isinstance(row.get('text'), str):
            raise UserError(f'{where}: the fields "_id" and "text" are expected, and text must be a string')
        name = str(row['_id'])
        if name in texts:
            raise UserError(f'{where}: the id {name!r} stands on an earlier line too: ids must be unique')
        texts[name] = document_text(row) if titles else row['text'].strip()
    return texts


def document_text(row: dict) -> str:
    """Title + ' ' + text of a row of corpus.jsonl, stripped."""
    return f'{row.get("title") or ""} {row["text"]}'.strip()


def read_qrels(path: epath.Path, queries: dict[str, str]) -> tuple[Qrels, int]:
    """The judgements, and what their grades were multiplied by; grades below 0 become 0.

    A first line whose third field is no number is the header; it may be missing. Raises UserError with file and line for a
    line that is not query id, document id, grade, for a query that is not in `queries` and for two grades of one pair.
    """
    judged: dict[str, dict[str, Decimal]] = {}
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [field.strip() for field in line.split('\t')]
        grade = _grade(fields[2]) if len(fields) == 3 else None
        if grade is None and number == 0 and len(fields) == 3:
            continue
        if grade is None:
            raise UserError(f'{where}: query id, document id and a grade are expected, separated by tabs, not {line[:60]!r}')
        query, document = fields[:2]
        if query not in queries:
            raise UserError(f'{where}: the query {query!r} is not in queries.jsonl')
        if judged.setdefault(query, {}).setdefault(document, grade) != grade:
            raise UserError(f'{where}: query {query!r} and document {document!r} have another grade on an earlier line')
    decimals = max((-int(grade.as_tuple().exponent) for grades in judged.values() for grade in grades.values()), default=0)
    scale = 10 ** max(decimals, 0)
    return {query: {name: int(grade * scale) for name, grade in grades.items()} for query, grades in judged.items()}, scale


def _grade(text: str) -> Decimal | None:
    try:
        grade = max(Decimal(text), Decimal(0)).normalize()
    except InvalidOperation:
        return None
    return grade if grade.is_finite() and -int(grade.as_tuple().exponent) <= MAX_DECIMALS else None
