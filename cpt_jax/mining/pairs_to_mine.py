"""The pairs that negatives are mined for, and the documents among which they are searched."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cpt_jax.benchmark_data.beir import OWN_FILES, load_collection
from cpt_jax.data.files import find_input_files
from cpt_jax.data.pairs import Pair, Source
from cpt_jax.data.rows import RowSource
from cpt_jax.data.sources.csv_pairs import CsvSource
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import fetch
from cpt_jax.text.corpus import Corpus

# Names of the flags that each kind of pairs has.
_ARGUMENTS = {
    'jsonl': {'x', 'y', 'corpus', 'corpus_field', 'max_bad_share'},
    'csv': {'x', 'y', 'corpus', 'corpus_field', 'max_bad_share', 'separator'},
    'tfds': {'x', 'y', 'corpus', 'corpus_field', 'max_bad_share', 'split', 'data_dir'},
    'beir': {'split'},
}
# Flags that are arguments of the sources of training.
_SOURCE_ARGUMENTS = {'x', 'y', 'separator', 'data_dir', 'max_bad_share'}
KINDS_OF_PAIRS = tuple(_ARGUMENTS)
_CORPUS_FILES = 'corpus.jsonl', OWN_FILES
_TSV_SUFFIXES = '.tsv', '.tsv.gz'


class PairsToMine(NamedTuple):
    """Pairs, and the documents of a corpus besides the y's of the pairs.

    Attributes:
      pairs: the pairs, each with an id.
      iterate_corpus: function that yields the documents of the corpus, again at each call.
      notes: lines about what was read.
      read_fields: function that returns all fields of the row of a pair, by name; {} if pairs have
        no rows.
    """

    pairs: Source | Sequence[Pair]
    iterate_corpus: Callable[[], Iterable[str]]
    notes: tuple[str, ...]
    read_fields: Callable[[int], Mapping[str, Any]] = lambda index: {}


def open_pairs(
    path: str,
    kind: str = '',
    split: str = '',
    corpus: str = '',
    corpus_field: str = '',
    **arguments: Any,
) -> PairsToMine:
    """Opens pairs.

    Args:
      path: file, folder or pattern; name of a tfds data set; or folder of a BEIR collection.
      kind: one of KINDS_OF_PAIRS; '' finds it out from the path.
      split: split of a BEIR collection or a tfds data set; '' for 'train'.
      corpus: file of further documents (text/corpus.py), optional.
      corpus_field: field of its rows with the text; '' for title + ' ' + text.
      arguments: further arguments of the source of that kind, such as `x` and `y`.

    Raises:
      UserError: the pairs cannot be read, or an argument does not exist for the kind.
    """
    kind = kind or find_kind(path)
    arguments |= {'split': split, 'corpus': corpus, 'corpus_field': corpus_field}
    given = {name: value for name, value in arguments.items() if value not in (None, '')}
    for name in sorted(given.keys() - _ARGUMENTS[kind]):
        raise UserError(f'--{name}: pairs of kind {kind} have no such setting; remove the flag')
    if corpus_field and not corpus:
        raise UserError(f'--corpus_field {corpus_field}: needs --corpus')
    if kind == 'beir':
        return _open_collection(path, split or 'train')
    given = {name: given[name] for name in given.keys() & _SOURCE_ARGUMENTS}
    try:
        source = _make_source(path, kind, split or 'train', given)
    except UserError as error:
        raise UserError(f'--data {path}: {str(error).removeprefix("path: ")}') from None
    documents = Corpus(epath.Path(fetch(corpus, '--corpus')), corpus_field) if corpus else ()

    def iterate_corpus() -> Iterator[str]:
        return (text for _, text in documents)

    found = PairsToMine(source, iterate_corpus, (source.summary(),))
    if isinstance(source, RowSource):
        return found._replace(read_fields=source.read_fields)
    return found


def find_kind(path: str) -> str:
    """Returns the kind of pairs at a path.

    Raises:
      UserError: nothing is there.
    """
    name = path.rstrip('/').rpartition('/')[2]
    if name.endswith(CsvSource.suffixes):
        return 'csv'
    if '.jsonl' in name or is_remote(path):
        return 'jsonl'
    folder = Path(path).expanduser()
    if any((folder / name).exists() for name in _CORPUS_FILES):
        return 'beir'
    if folder.is_dir() or any(character in path for character in '*?['):
        return _find_kind_of_files(path)
    if folder.exists():
        return 'jsonl'
    raise UserError(
        f'--data {path}: no such file or folder; for a data set of TensorFlow Datasets, add '
        f'--kind=tfds'
    )


def _find_kind_of_files(path: str) -> str:
    """Returns the kind of the files of a folder or pattern.

    Raises:
      UserError: there are no files, or files of both kinds.
    """
    try:
        files = find_input_files(path, [*JsonlSource.suffixes, *CsvSource.suffixes])
    except UserError as error:
        raise UserError(f'--data {path}: {str(error).removeprefix("path: ")}') from None
    kinds = {'csv' if file.name.endswith(CsvSource.suffixes) else 'jsonl' for file in files}
    if len(kinds) > 1:
        raise UserError(
            f'--data {path}: has .jsonl and .csv or .tsv files: add --kind=jsonl or --kind=csv'
        )
    return kinds.pop()


def _find_separator(path: str) -> str:
    """Returns the separator of the cells: a tab if the files end in .tsv, else a comma.

    Raises:
      UserError: only some of the files end in .tsv.
    """
    files = find_input_files(path, CsvSource.suffixes)
    are_tsv = {file.name.endswith(_TSV_SUFFIXES) for file in files}
    if len(are_tsv) > 1:
        raise UserError(
            'has .csv and .tsv files, whose separators differ: give a pattern that matches files '
            'of one kind'
        )
    return '\t' if are_tsv.pop() else ','


def _make_source(path: str, kind: str, split: str, given: dict[str, Any]) -> Source:
    """Returns the source of all pairs in files, or of a split of a tfds data set."""
    if kind == 'tfds':
        missing = ' and '.join(f'--{name}' for name in ('x', 'y') if name not in given)
        if missing:
            raise UserError(f'a tfds data set needs {missing}: the names of its text features')
        return TfdsSource(path, 'train', train_split=split, heldout_split='', **given)
    if kind == 'csv':
        separator = given.get('separator') or _find_separator(path)
        arguments = {'x': 'x', 'y': 'y', **given, 'separator': separator}
        return CsvSource(path, 'all', negatives='', **arguments)
    return JsonlSource(path, 'all', negatives='', **given)


def _open_collection(path: str, split: str) -> PairsToMine:
    """Opens the judged pairs of a BEIR collection: the queries with their relevant documents."""
    collection = load_collection(epath.Path(fetch(path, '--data')), split)
    relevant = [
        (query, text, name)
        for query, text in zip(collection.query_ids, collection.queries, strict=True)
        for name, grade in collection.qrels[query].items()
        if grade > 0 and name in collection.positions
    ]
    positions = {collection.positions[name] for _, _, name in relevant}
    texts = collection.documents.load_texts_at(positions)
    pairs = [
        Pair(text, texts[collection.positions[name]], id=f'{query}/{name}')
        for query, text, name in relevant
    ]

    def iterate_corpus() -> Iterator[str]:
        return (text for _, text in collection.documents.iterate_texts())

    note = (
        f'beir/{split}: {len(pairs):,} pairs of {len(collection.queries):,} queries, '
        f'{len(collection.documents):,} documents'
    )
    return PairsToMine(pairs, iterate_corpus, (note, *collection.warnings))
