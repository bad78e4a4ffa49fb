"""Documents of supervised data sets in their published forms.

Their fields are `x`, a list `y` and a list `negatives`, which are the defaults of the pair rule
`fields`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from cpt_jax.prepare.document import Document, Dropped, Unreadable
from cpt_jax.prepare.readers.compressed import BrokenFile, iterate_lines, open_input
from cpt_jax.prepare.records import JOINT, BadRecord, get_text
from cpt_jax.runtime.errors import UserError

NLI_SUFFIXES = ('.jsonl',)
DPR_SUFFIXES = ('.json',)
_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 10_000_000
_SPLITS = {'train', 'dev', 'test', 'val', 'valid', 'validation'}
_NAME_PART = re.compile('[a-z0-9]+')


def make_supervised_document(
    x: str, y: Sequence[str], negatives: Sequence[str], identity: str
) -> Document:
    """Returns a document of a text, its positives and its hard negatives.

    Documents with an equal x are held out together.
    """
    fields = {'x': x, 'y': list(y), 'negatives': list(negatives), 'group': x}
    return Document(JOINT.join([x, *y]), identity, fields)


def read_nli(
    path: Path, name: str, split: str = 'train'
) -> Iterator[Document | Unreadable | Dropped]:
    """Yields a document for each premise of SNLI or MNLI: entailed sentences are its y, and
    contradictions its hard negatives, as in supervised SimCSE (arXiv 2104.08821, section 4).

    Premises without an entailed sentence and a contradiction are dropped. All premises of a file
    are held in memory.

    Args:
      path: a file such as snli_1.0_train.jsonl or multinli_1.0_train.jsonl.
      name: its name in the source.
      split: split whose files are read; see `is_file_of_split`.
    """
    del split  # `is_file_of_split` has selected the files
    premises: dict[str, dict[str, list[str]]] = {}
    try:
        with open_input(path) as file:
            for number, line in enumerate(iterate_lines(file, _MAX_LINE_BYTES), 1):
                if not line.strip():
                    continue
                try:
                    row = _parse_object(line)
                    label = get_text(row, 'gold_label')
                    found = premises.setdefault(get_text(row, 'sentence1').strip(), {})
                    found.setdefault(label, []).append(get_text(row, 'sentence2').strip())
                except BadRecord as error:
                    yield Unreadable(f'{name}:{number}', error.kind, error.detail)
    except BrokenFile as error:
        yield Unreadable(name, error.kind, error.detail, ends_file=True)
    for number, (premise, found) in enumerate(premises.items()):
        entailed, contradictions = found.get('entailment'), found.get('contradiction')
        if entailed and contradictions:
            yield make_supervised_document(
                premise, entailed, contradictions, f'{name}, premise {number}'
            )
        else:
            yield Dropped('premise without an entailed sentence and a contradiction')


def read_dpr(
    path: Path, name: str, positives: int = 1, hard_negatives: int = 8, split: str = 'train'
) -> Iterator[Document | Unreadable]:
    """Yields a document for each question of a file in DPR's form, such as biencoder-nq-train.json.

    A passage is its title, a space and its text, as in evaluation.

    Args:
      path: the file, a JSON list that is read in blocks.
      name: its name in the source.
      positives: maximum number of positive passages; each makes a pair. DPR uses the first.
      hard_negatives: maximum number of hard negatives.
      split: split whose files are read; see `is_file_of_split`.
    """
    del split  # `is_file_of_split` has selected the files
    number = 0
    try:
        with open_input(path) as file:
            for row in iterate_json_list(file):
                number += 1
                where = f'{name}, question {number}'
                try:
                    yield make_supervised_document(
                        get_text(row, 'question'),
                        _get_passages(row, 'positive_ctxs', positives),
                        _get_passages(row, 'hard_negative_ctxs', hard_negatives),
                        where,
                    )
                except BadRecord as error:
                    yield Unreadable(where, error.kind, error.detail)
    except BrokenFile as error:
        yield Unreadable(f'{name}, question {number + 1}', error.kind, error.detail, ends_file=True)


def is_file_of_split(name: str, split: str = 'train', **others: object) -> bool:
    """Returns whether the name of a file has the name of a split, or of none.

    `snli_1.0_train.jsonl` and `biencoder-nq-train.json` are of the split `train`.
    """
    del others
    parts = {*_NAME_PART.findall(Path(name).name.lower())}
    return split in parts or not parts & _SPLITS


def read_beir(
    path: Path, name: str, split: str = 'train'
) -> Iterator[Document | Unreadable | Dropped]:
    """Yields a document for each query of a BEIR collection or of MS MARCO, with its relevant
    documents. Texts are read as in evaluation.

    Args:
      path: file of judgements: qrels/SPLIT.tsv of BEIR, or qrels.SPLIT.tsv of MS MARCO. Corpus and
        queries are next to it.
      name: its name in the source.
      split: name of the split.
    """
    from etils import epath

    from cpt_jax.benchmark_data.beir import load_collection

    folder = path.parent.parent if path.parent.name == 'qrels' else path.parent
    try:
        collection = load_collection(epath.Path(folder), split)
    except UserError as error:
        yield Unreadable(name, 'broken collection', str(error), ends_file=True)
        return
    missing = sum(
        grade > 0 and key not in collection.positions
        for grades in collection.qrels.values()
        for key, grade in grades.items()
    )
    if missing:
        yield Dropped('relevant document that is not in the corpus', missing)
    relevant = {
        query: [key for key, grade in grades.items() if grade > 0 and key in collection.positions]
        for query, grades in collection.qrels.items()
    }
    wanted = {collection.positions[key] for keys in relevant.values() for key in keys}
    texts = collection.documents.load_texts_at(wanted)
    for query, text in zip(collection.query_ids, collection.queries, strict=True):
        answers = [texts[collection.positions[key]] for key in relevant[query]]
        if not answers:
            yield Dropped('query without a document')
            continue
        yield make_supervised_document(text, answers, (), f'{name} {query}')


def is_beir_split(name: str, split: str = 'train') -> bool:
    """Returns whether a file has the judgements of a split."""
    return f'/{name}'.endswith((f'/qrels/{split}.tsv', f'/qrels.{split}.tsv'))


def is_beir_companion(name: str) -> bool:
    """Returns whether a file has the documents or queries of a collection."""
    return fnmatchcase(name, 'queries.*') or name in ('corpus.jsonl', 'collection.tsv')


def iterate_json_list(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON list, which is read in blocks.

    Raises:
      BrokenFile: the file ends early, or is no list of objects.
    """
    decoder = json.JSONDecoder()
    text = ''
    is_open = False
    while block := file.read(_BLOCK_BYTES):
        # A character may be cut at the end of a block; the rest of it is in the next one.
        while block and block[-1] & 0x80:
            more = file.read(1)
            if not more:
                break
            block += more
        try:
            text += block.decode('utf-8')
        except UnicodeDecodeError as error:
            raise BrokenFile('not UTF-8', error) from None
        if not is_open:
            text = text.lstrip().removeprefix('\ufeff')
            if not text.startswith('['):
                raise BrokenFile('not a JSON list')
            text = text[1:]
            is_open = True
        position = 0
        while True:
            while position < len(text) and text[position] in ' \t\r\n,':
                position += 1
            if text[position : position + 1] == ']':
                return
            try:
                value, position = decoder.raw_decode(text, position)
            except RecursionError:
                raise BrokenFile('not JSON', 'it is nested too deeply') from None
            except ValueError:
                break
            if not isinstance(value, dict):
                raise BrokenFile('not a list of JSON objects')
            yield value
        text = text[position:]
    raise BrokenFile('truncated file', 'the JSON list does not end')


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord('not JSON', str(error)) from None
    if not isinstance(row, dict):
        raise BadRecord('not a JSON object')
    return row


def _get_passages(row: dict[str, Any], field: str, most: int) -> list[str]:
    """Returns the first passages of a field.

    Raises:
      BadRecord: the field is missing or a passage has no text.
    """
    passages = row.get(field)
    if not isinstance(passages, list):
        raise BadRecord(f'no list {field!r}')
    texts = []
    for passage in passages[:most]:
        title = passage.get('title') or '' if isinstance(passage, dict) else ''
        texts.append(f'{title} {get_text(passage, "text")}'.strip())
    return texts
