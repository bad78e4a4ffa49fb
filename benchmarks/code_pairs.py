"""Counts the (documentation, function) pairs of source trees, by language and by what is left out.

The pairs are those of configs/prepare_code.py, with the duplicates of CodeSearchNet removed in
memory, which takes about 10 KB for each pair.

Example:
  python benchmarks/code_pairs.py --path src/debian --path src/npm --workers 2
"""

import json
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from cpt_jax.cli.program import run_program
from cpt_jax.data.files import InputFile, find_input_files
from cpt_jax.prepare.code_duplicates import find_duplicate_functions
from cpt_jax.prepare.code_pairs import check_functions, find_documented_functions
from cpt_jax.prepare.document import Dropped, Unreadable
from cpt_jax.prepare.parsers.nodes import CODESEARCHNET, SCOPES
from cpt_jax.prepare.source_trees import HIDDEN, SUFFIXES, read_sources
from cpt_jax.runtime.errors import UserError

_PATHS = flags.DEFINE_multi_string('path', [], 'Folder or archive; may be given several times.')
_SCOPE = flags.DEFINE_enum('scope', CODESEARCHNET, SCOPES, 'Which functions are found.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Number of processes.', lower_bound=1)
_JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')

# What a file gives: (language, package, license, bytes, tokens of its functions, reasons).
_Found = tuple[str, str, str, int, list[tuple[str, ...]], Counter[str]]


def main() -> None:
    if not _PATHS.value:
        raise UserError('--path is missing: name a folder or an archive with source files')
    check_functions(_SCOPE.value)
    start = time.perf_counter()
    files = [
        file for path in _PATHS.value for file in find_input_files(path, SUFFIXES, hidden=HIDDEN)
    ]
    functions: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    packages: dict[str, set[str]] = defaultdict(set)
    licensed: Counter[str] = Counter()
    jobs = [(file, _SCOPE.value) for file in files]
    with multiprocessing.Pool(_WORKERS.value) as pool:
        results = pool.imap(_extract, jobs, 4)
        for found in tqdm(results, total=len(jobs), desc='reading', unit='file', disable=None):
            for language, package, license_id, size, tokens, rejected in found:
                functions[language] += tokens
                counts[language] += rejected + Counter({'files': 1, 'bytes': size})
                if tokens:
                    packages[language].add(package)
                    licensed[language] += len(tokens) * bool(license_id)
    seconds = time.perf_counter() - start
    rows = {}
    for language in sorted(functions):
        kept = len(functions[language])
        duplicates = int(find_duplicate_functions(functions[language], language).sum())
        rows[language] = {
            **counts[language],
            'passed': kept,
            'duplicates': duplicates,
            'pairs': kept - duplicates,
            'packages': len(packages[language]),
            'share_with_license': licensed[language] / max(kept, 1),
        }
    _print(rows, seconds)
    if _JSON.value:
        results = {'languages': rows, 'seconds': seconds, 'scope': _SCOPE.value}
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def _extract(job: tuple[InputFile, str]) -> list[_Found]:
    """Returns what the source files of a file or archive give."""
    file, scope = job
    return list(_iterate_documents(file, scope))


def _iterate_documents(file: InputFile, scope: str) -> Iterator[_Found]:
    for document in read_sources(file.path, file.name):
        if isinstance(document, Dropped):
            continue
        if isinstance(document, Unreadable):
            yield 'unreadable', '', '', 0, [], Counter({document.kind: 1})
            continue
        fields = document.fields
        rejected: Counter[str] = Counter()
        found = find_documented_functions(
            document.text, fields['language'], fields['path'], scope, rejected
        )
        yield (
            fields['language'],
            fields['package'],
            fields['license'],
            len(document.text),
            [function.tokens for function in found],
            rejected,
        )


def _print(rows: dict[str, dict], seconds: float) -> None:
    total = Counter()
    columns: Sequence[str] = (
        'packages', 'files', 'seen', 'no documentation', 'passed', 'duplicates', 'pairs'
    )  # fmt: skip
    print(' | '.join(['language', *columns, 'MB', 'license known']))
    for language, row in rows.items():
        values = [f'{row.get(column, 0):,}' for column in columns]
        values += [f'{row.get("bytes", 0) / 1e6:.0f}', f'{row["share_with_license"]:.0%}']
        print(' | '.join([language, *values]))
        total += Counter({key: row.get(key, 0) for key in (*columns, 'bytes')})
    print(' | '.join(['all', *(f'{total[column]:,}' for column in columns)]))
    print(
        f'{total["bytes"] / 1e6:,.0f} MB in {seconds:,.0f} s: {total["bytes"] / 1e6 / seconds:.2f} '
        f'MB/s with {_WORKERS.value} processes, without the duplicates'
    )


if __name__ == '__main__':
    run_program(main)
