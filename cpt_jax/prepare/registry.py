"""The readers and pair rules that a source of a config can name."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from cpt_jax.prepare import code_pairs, fields, licenses, neighbours, source_trees
from cpt_jax.prepare.document import Document, Dropped, TextPair, Unreadable
from cpt_jax.prepare.readers import (
    json_lines,
    parquet,
    supervised,
    tables,
    text_files,
    tfds_texts,
    web_archives,
)


class Reader(NamedTuple):
    """A kind of input files.

    Attributes:
      read: function from (path, name of the file, arguments of the config) to its documents.
      suffixes: suffixes of the files to find in a folder; .gz and .zst may follow.
      check: function that raises UserError for arguments that are invalid.
      accepts: function from the name of a file of a folder, and the arguments of `read`, to whether
        it is read.
      hidden: characters with which names begin that are skipped in folders and patterns.
      is_companion: function from the name of a file, without its folder, to whether `read` opens it
        together with a file that it is called for, such as the license of a folder.
    """

    read: Callable[..., Iterator[Document | Unreadable | Dropped]]
    suffixes: tuple[str, ...]
    check: Callable[..., None] = lambda **arguments: None
    accepts: Callable[..., bool] = lambda name, **arguments: True
    hidden: str = '_.'
    is_companion: Callable[[str], bool] = lambda name: False


class PairRule(NamedTuple):
    """A way to make pairs of a document.

    Attributes:
      make_pairs: function from (document, arguments of the config) to its pairs.
      check: function that raises UserError for arguments that do not fit together.
      unit: what is filtered, and compared for duplicates: 'document'; or, where a document holds
        unrelated pairs, each 'pair' as a whole or its 'y'.
    """

    make_pairs: Callable[..., Iterable[TextPair | Dropped]]
    check: Callable[..., None] = lambda **arguments: None
    unit: str = 'document'


READERS = {
    'text': Reader(text_files.read_text_file, text_files.SUFFIXES, text_files.check_text_reader),
    'jsonl': Reader(json_lines.read_json_documents, json_lines.SUFFIXES),
    'parquet': Reader(parquet.read_parquet_file, parquet.SUFFIXES),
    'csv': Reader(tables.read_table, tables.SUFFIXES, tables.check_table_reader),
    'tfds': Reader(
        tfds_texts.read_tfds_shard,
        ('',),
        accepts=tfds_texts.is_shard,
        is_companion=tfds_texts.FEATURES_FILE.__eq__,
    ),
    'web': Reader(
        web_archives.read_web_archive, web_archives.SUFFIXES, web_archives.check_web_archives
    ),
    'sources': Reader(
        source_trees.read_sources,
        source_trees.SUFFIXES,
        source_trees.check_source_reader,
        source_trees.is_source,
        source_trees.HIDDEN,
        licenses.is_license_file,
    ),
    'nli': Reader(
        supervised.read_nli, supervised.NLI_SUFFIXES, accepts=supervised.is_file_of_split
    ),
    'dpr': Reader(
        supervised.read_dpr, supervised.DPR_SUFFIXES, accepts=supervised.is_file_of_split
    ),
    'beir': Reader(
        supervised.read_beir,
        ('.tsv',),
        accepts=supervised.is_beir_split,
        is_companion=supervised.is_beir_companion,
    ),
}
PAIR_RULES = {
    'neighbours': PairRule(neighbours.pair_neighbours, neighbours.check_neighbours),
    'fields': PairRule(fields.pair_fields, unit='pair'),
    'functions': PairRule(code_pairs.pair_functions, code_pairs.check_functions, unit='y'),
    'codesearchnet': PairRule(fields.pair_code_search_net, unit='y'),
}
# Arguments of these functions that the program sets, not the section of a source.
_SET_BY_PROGRAM = ('path', 'name', 'document', 'tokenizer_path')


def get_arguments(function: Callable) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a reader or pair rule that a config may set, by name."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if name not in _SET_BY_PROGRAM}


def find_other_defaults(name: str) -> list[Any]:
    """Returns the defaults of an argument in all readers and pair rules, as JSON stores them."""
    functions: list[Callable] = [reader.read for reader in READERS.values()]
    functions += [rule.make_pairs for rule in PAIR_RULES.values()]
    found = [get_arguments(function).get(name) for function in functions]
    defaults = [parameter.default for parameter in found if parameter is not None]
    return [list(value) if isinstance(value, tuple) else value for value in defaults]


def takes_tokenizer(function: Callable[..., Any]) -> bool:
    """Returns whether a pair rule counts tokens."""
    return 'tokenizer_path' in inspect.signature(function).parameters
