"""(documentation, function) pairs from the Python installation itself: real data on every machine,
with no download.

The pairs come from the standard library of the running interpreter and from the installed
distributions that are named, so what else is installed does not change them. A pair is the first
paragraph of a docstring and the source of its function without the docstring, which would give the
answer away. Decorators are left out, as in CodeSearchNet, whose functions begin at their `def`:
some of them hold the documentation (`@doc('...')`, `@deprecated('...')`). Methods count, nested
functions do not. Exact and near duplicate functions are removed first and pairs held out
afterwards, so none is on both sides; a docstring such as 'Returns the name.' may be.
"""

import contextlib
import gc
import importlib.metadata
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cpt_jax.data.filters import FILTERS_VERSION, exact_duplicates, near_duplicates, path_rejection
from cpt_jax.data.pairs import Pair, text_digest, unit_hash
from cpt_jax.data.problems import BadRow, Problems
from cpt_jax.data.python_functions import Function, decode, functions
from cpt_jax.data.split import rows_of
from cpt_jax.data.strings import Strings
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, cached, from_array, to_array

# Raise it when this file or python_functions.py makes other pairs of the same files.
EXTRACTION_VERSION = 1

# The distributions of requirements.txt, by the names that stand there.
DEFAULT_PACKAGES = (
    'absl-py', 'array_record', 'bm25s', 'etils', 'flax', 'grain', 'jax', 'Jinja2', 'matplotlib',
    'ml_collections', 'numpy', 'optax', 'orbax-checkpoint', 'pytrec-eval-terrier', 'safetensors',
    'scipy', 'sentencepiece',
    'tensorboardX', 'tensorflow-datasets', 'tokenizers', 'tqdm',
)  # fmt: skip

# Chosen once: of 0, 1, 2, ... the first with which a tenth of the packages holds 1,250 pairs or
# more, at most 15 % of all, and no package makes up more than a third of them (a candidate pool
# from one package would be a test of that package). Held out with it, largest first: idlelib,
# optax, absl-py, asyncio, importlib, ml_collections, xml, wsgiref, smtplib, ...
HOLDOUT_SALT = '53/'


class SourceFile(NamedTuple):
    """One file: the package that it belongs to, its name for people ('json/decoder.py') and where
    it lies.
    """

    package: str
    name: str
    path: Path


class PythonSource:
    """Pairs of documentation (x) and function (y); see the module for what they are and
    `cpt_jax/data/filters.py` for which.

    Whole packages are held out: a top-level module or package of the standard library is one, a
    distribution is another.

    Attributes:
      split, fingerprint, documents, problems: as every source.
      packages: str[n], the package of each pair.
    """

    documents = None

    def __init__(
        self,
        split: str,
        packages: Sequence[str] = DEFAULT_PACKAGES,
        standard_library: bool = True,
        holdout: float = 0.1,
        max_bad_share: float = 0.01,
    ):
        """Reads the sources, or the cache that an earlier call left.

        Args:
          split: 'train', 'heldout' or 'all'.
          packages: names of installed distributions, as pip prints them.
          standard_library: whether to read the standard library too.
          holdout: share of the packages, in [0, 1], that 'heldout' gets and 'train' does not.
          max_bad_share: share of the files that may fail to decode or to parse.
        """
        files = find_files(packages, standard_library)
        corpus = _fingerprint(files)
        saved = cached(f'python_source_{corpus}', lambda: _build(files))
        self.split = split
        self.fingerprint = text_digest('python_source', corpus, split, repr(float(holdout)))
        self.counts = from_array(saved['counts'])
        self.problems = Problems.from_json(self.counts['problems'], max_bad_share)
        self.problems.check()
        self._heldout = [
            name for name in np.unique(saved['packages']).tolist() if is_held_out(name, holdout)
        ]
        rows = rows_of(split, np.isin(saved['packages'], self._heldout), 'python_source', holdout)
        self._rows, self.packages = rows, saved['packages'][rows]
        self._ids, self._docs, self._codes = (
            Strings(saved[key], saved[f'{key}_starts']) for key in ('ids', 'docs', 'codes')
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        row = int(self._rows[index])
        return Pair(x=self._docs[row], y=self._codes[row], id=self._ids[row])

    def summary(self) -> str:
        """One line: what was read, what each filter dropped, what is left."""
        dropped = ', '.join(
            f'{count:,} {reason}' for reason, count in self.counts['dropped'].items()
        )
        return (
            f'python_source/{self.split}: {len(self):,} of {len(self._docs):,} pairs, from '
            f'{self.counts["seen"]:,} functions in {self.problems.rows:,} files; dropped: '
            f'{dropped}; held out: {", ".join(self._heldout) or "nothing"}'
        )


def is_held_out(package: str, holdout: float) -> bool:
    return unit_hash(HOLDOUT_SALT + package) < holdout


def find_files(packages: Sequence[str], standard_library: bool) -> list[SourceFile]:
    """The files to read, in the order that decides which of two duplicates stays; files of tests
    are left out.
    """
    files = list(_standard_library_files()) if standard_library else []
    for package in sorted(packages):
        files += _distribution_files(package)
    return [file for file in files if not path_rejection(file.name)]


def _standard_library_files() -> Iterator[SourceFile]:
    """Top-level modules that are part of Python everywhere: not what a distributor or a build put
    beside them.
    """
    root = Path(sysconfig.get_path('stdlib'))
    for module in sorted(sys.stdlib_module_names):
        paths = [root / f'{module}.py', *sorted((root / module).rglob('*.py'))]
        for path in paths:
            if path.is_file():
                yield SourceFile(module, path.relative_to(root).as_posix(), path)


def _distribution_files(name: str) -> Iterator[SourceFile]:
    """The .py files that pip recorded for a distribution; a folder may hold files of others (orbax,
    google).
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f'data: the package {name!r} is not installed: install it or take it out of packages'
        ) from None
    if distribution.files is None:
        raise UserError(
            f'data: the package {name!r} was installed without a list of its files (RECORD): '
            f'install it with pip'
        )
    for path in sorted(distribution.files):
        # '..' leads to scripts outside of the packages.
        if path.suffix == '.py' and path.parts[0] != '..':
            yield SourceFile(name, path.as_posix(), Path(path.locate()))


def _fingerprint(files: Sequence[SourceFile]) -> str:
    contents = (
        f'{file.package} {file.name} {blake2b(file.path.read_bytes()).hexdigest()}'
        for file in files
    )
    return text_digest(str(EXTRACTION_VERSION), str(FILTERS_VERSION), *contents)


def _build(files: Sequence[SourceFile]) -> Arrays:
    """Reads every file; the result is what the cache keeps, for all splits."""
    problems = Problems()
    dropped: Counter[str] = Counter()
    with _no_garbage_collection():
        found = list(_all_functions(files, dropped, problems))
    seen = dropped.pop('seen', 0)
    for reason, duplicates in (
        ('exact duplicate', exact_duplicates),
        ('near duplicate', near_duplicates),
    ):
        repeated = duplicates([function.code for _, function in found])
        dropped[reason] = int(repeated.sum())
        found = [row for row, again in zip(found, repeated, strict=True) if not again]
    counts = {'seen': seen, 'dropped': dropped, 'problems': problems.to_json()}
    return {'counts': to_array(counts), **_columns(found)}


def _all_functions(
    files: Sequence[SourceFile], dropped: Counter[str], problems: Problems
) -> Iterator[tuple[SourceFile, Function]]:
    for file in tqdm(files, desc='reading Python sources', unit='file', disable=None):
        problems.rows += 1
        try:
            found = functions(decode(file.path.read_bytes()), dropped)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            problems.add(
                BadRow('not Python that parses', str(error)),
                f'{file.path}:{getattr(error, "lineno", None) or 1}',
            )
        else:
            yield from ((file, function) for function in found)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A third faster: syntax trees are many small objects, and without cycles, so there is nothing
    to collect.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _columns(found: Sequence[tuple[SourceFile, Function]]) -> Arrays:
    texts = {
        'ids': Strings.of(
            f'{file.name}:{function.line} {function.name}' for file, function in found
        ),
        'docs': Strings.of(function.doc for _, function in found),
        'codes': Strings.of(function.code for _, function in found),
    }
    columns = {'packages': np.array([file.package for file, _ in found], str)}
    for key, strings in texts.items():
        columns |= {key: strings.bytes, f'{key}_starts': strings.starts}
    return columns
