"""Splits (docstring, function) pairs into training data and a code search task for each language.

Reads JSON lines with the fields language, docstring and code, such as CodeSearchNet's. Functions of
one file are held out together. A training pair is dropped if the first paragraph of its docstring,
or its code, equals that of a held-out pair.

OUTPUT/train/<language>.jsonl is a `jsonl` source; with --data_dir OUTPUT, launch/evaluate.py scores
OUTPUT/codesearch/<language>.jsonl as codesearch/<language>.

Example:
  python benchmarks/split_functions.py --input data/functions --output data/languages
"""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.data.files import find_input_files
from cpt_jax.data.filters import extract_first_paragraph
from cpt_jax.data.pairs import hash_to_unit_interval
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import get_text_field, read_json_lines

SUFFIXES = '.jsonl', '.jsonl.gz'


class Function(NamedTuple):
    """A row, and what decides where it goes.

    Attributes:
      row: the row.
      language: its language.
      file: repository and path of its file.
      texts: the first paragraph of the docstring, and the code, with single spaces.
    """

    row: Mapping
    language: str
    file: str
    texts: tuple[str, str]


def main() -> None:
    paths = [file.path for file in find_input_files(_INPUT.value, SUFFIXES)]
    functions = [
        parse_function(row, where) for path in paths for where, row in read_json_lines(path)
    ]
    train, heldout = split_functions(functions, _HOLDOUT.value)
    parts = {'train': train, 'codesearch': heldout}
    for name in parts:
        check_is_empty(Path(_OUTPUT.value) / name)
    counts = {
        name: write_languages(Path(_OUTPUT.value) / name, part) for name, part in parts.items()
    }
    print(f'{"":<12}{"train":>8}{"test":>8}')
    for language in sorted(counts['train'] | counts['codesearch']):
        print(f'{language:<12}' + ''.join(f'{counts[name][language]:>8,}' for name in counts))
    dropped = len(functions) - len(train) - len(heldout)
    print(f'{dropped:,} pairs with the text of a test pair, or an earlier test text, are dropped')


def parse_function(row: Mapping, where: str) -> Function:
    """Returns the function of a row.

    Raises:
      UserError: a field is missing, or the language cannot be the name of a file.
    """
    language, docstring, code = (
        get_text_field(row, where, name) for name in ('language', 'docstring', 'code')
    )
    if '/' in language:
        raise UserError(
            f'{where}: language {language!r} contains /; it is the name of a file in --output'
        )
    file = str(row.get('path') or row.get('file') or '')
    if not file:
        raise UserError(f'{where}: has neither "path" nor "file"; functions are held out by file')
    repository = row.get('repo') or row.get('repository') or ''
    texts = extract_first_paragraph(docstring), code
    single_spaced = tuple(' '.join(text.split()) for text in texts)
    return Function(row, language, f'{repository}/{file}', single_spaced)  # type: ignore[arg-type]


def split_functions(
    functions: Sequence[Function], holdout: float
) -> tuple[list[Function], list[Function]]:
    """Returns the training functions and the held-out ones.

    No two held-out functions have the same first paragraph or the same code.

    Args:
      functions: all functions.
      holdout: fraction of the files that are held out.
    """
    heldout: list[Function] = []
    texts: set[str] = set()
    train = []
    for function in functions:
        if hash_to_unit_interval(function.file) >= holdout:
            train.append(function)
        elif not texts.intersection(function.texts):
            heldout.append(function)
            texts.update(function.texts)
    return [one for one in train if not texts.intersection(one.texts)], heldout


def check_is_empty(folder: Path) -> None:
    """Raises UserError if a folder has files, which could be those of another split."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f'--output: {folder} has files; remove it, or give another folder')


def write_languages(folder: Path, functions: Sequence[Function]) -> collections.Counter[str]:
    """Writes one file of rows for each language, and returns their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = collections.defaultdict(list)
    for function in functions:
        lines[function.language].append(json.dumps(function.row) + '\n')
    for language, rows in lines.items():
        (folder / f'{language}.jsonl').write_text(''.join(rows))
    return collections.Counter({language: len(rows) for language, rows in lines.items()})


if __name__ == '__main__':
    _INPUT = flags.DEFINE_string('input', None, 'File, folder or pattern to read.', required=True)
    _OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to.', required=True)
    _HOLDOUT = flags.DEFINE_float(
        'holdout', 0.2, 'Fraction of the files to hold out.', lower_bound=0, upper_bound=0.9
    )
    run_program(main)
