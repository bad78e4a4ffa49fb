"""(documentation, function) pairs from the Python installation itself: real data on every machine,
without a download.

The pairs come from the standard library of the running interpreter and from the named installed
distributions; other installed packages do not change them. A pair is the first paragraph of a
docstring and the source of its function. The docstring is removed from the source, because it would
make retrieval trivial. Decorators are removed too, as in CodeSearchNet, because some contain the
documentation (`@doc('...')`, `@deprecated('...')`). Methods are included, nested functions are not.
Exact and near duplicates of functions are removed before pairs are held out, so no function is in
both splits; a docstring such as 'Returns the name.' may be in both.
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

from cpt_jax.data.filters import (
    FILTERS_VERSION,
    explain_rejected_path,
    find_exact_duplicates,
    find_near_duplicates,
)
from cpt_jax.data.pairs import Pair, digest_texts, hash_to_unit_interval
from cpt_jax.data.problems import BadRow, Problems
from cpt_jax.data.python_functions import Function, decode_source, extract_functions
from cpt_jax.data.split import select_rows
from cpt_jax.data.strings import Strings
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, array_to_json, json_to_array, load_or_build

# Increment when a change to this file or to python_functions.py changes the pairs extracted from
# the same files.
EXTRACTION_VERSION = 1
_PAIR_ARRAYS = (
    'counts', 'packages', 'ids', 'ids_starts', 'docs', 'docs_starts', 'codes', 'codes_starts'
)  # fmt: skip

# The distributions in requirements.txt, with the names that they have there.
DEFAULT_PACKAGES = (
    'absl-py', 'array_record', 'bm25s', 'etils', 'flax', 'grain', 'jax', 'Jinja2', 'matplotlib',
    'ml_collections', 'numpy', 'optax', 'orbax-checkpoint', 'pytrec-eval-terrier', 'safetensors',
    'scipy', 'sentencepiece',
    'tensorboardX', 'tensorflow-datasets', 'tokenizers', 'tqdm',
)  # fmt: skip

# Prefix of a package's name before it is hashed. It is the first of '0/', '1/', '2/', ... for which
# the held-out tenth of the packages has at least 1,250 pairs and at most 15 % of all pairs, and no
# package has more than a third of the held-out pairs (otherwise the test would mainly measure that
# package). With this prefix, the held-out packages are, largest first: idlelib, optax, absl-py,
# asyncio, importlib, ml_collections, xml, wsgiref, smtplib, ...
HOLDOUT_SALT = '53/'


class SourceFile(NamedTuple):
    """A Python source file.

    Attributes:
      package: package or top-level module that the file belongs to.
      name: readable name, such as 'json/decoder.py'.
      path: path to read.
    """

    package: str
    name: str
    path: Path


class PythonSource:
    """Pairs of documentation (x) and function (y).

    The module docstring defines the pairs, and `cpt_jax/data/filters.py` defines the filters. Whole
    packages are held out. A package is a distribution, or a top-level module or package of the
    standard library.

    Attributes:
      split, fingerprint, documents: see Source.
      problems: counts of the files that cannot be decoded or parsed.
      counts: number of functions seen, and number of dropped functions by reason.
      packages: str[n], package of each pair.
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
        """Reads the source files, or loads the pairs from the cache.

        Args:
          split: 'train', 'heldout' or 'all'.
          packages: names of installed distributions, as printed by pip.
          standard_library: whether to include the standard library.
          holdout: fraction of the packages, in [0, 1], that is in 'heldout' and not in 'train'.
          max_bad_share: maximum fraction of files that cannot be decoded or parsed.

        Raises:
          UserError: a package is not installed, the split is empty, or too many files are bad.
        """
        files = find_files(packages, standard_library)
        corpus = _compute_fingerprint(files)
        saved = load_or_build(f'python_source_{corpus}', lambda: _build_arrays(files), _PAIR_ARRAYS)
        self.split = split
        self.fingerprint = digest_texts('python_source', corpus, split, repr(float(holdout)))
        self.counts = array_to_json(saved['counts'])
        self.problems = Problems.from_json(self.counts['problems'], max_bad_share)
        self.problems.check()
        self._heldout = [
            name for name in np.unique(saved['packages']).tolist() if is_held_out(name, holdout)
        ]
        rows = select_rows(
            split, np.isin(saved['packages'], self._heldout), 'python_source', holdout
        )
        self._rows = rows
        self.packages = saved['packages'][rows]
        self._ids = Strings(saved['ids'], saved['ids_starts'])
        self._docs = Strings(saved['docs'], saved['docs_starts'])
        self._codes = Strings(saved['codes'], saved['codes_starts'])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        row = int(self._rows[index])
        return Pair(x=self._docs[row], y=self._codes[row], id=self._ids[row])

    def summary(self) -> str:
        """Returns one line: the numbers of pairs, functions and files, and the dropped functions by
        reason.
        """
        dropped = ', '.join(
            f'{count:,} {reason}' for reason, count in self.counts['dropped'].items()
        )
        return (
            f'python_source/{self.split}: {len(self):,} of {len(self._docs):,} pairs, from '
            f'{self.counts["seen"]:,} functions in {self.problems.rows:,} files; dropped: '
            f'{dropped}; held out: {", ".join(self._heldout) or "nothing"}'
        )


def is_held_out(package: str, holdout: float) -> bool:
    """Returns whether a package is held out if `holdout` is the fraction of held-out packages."""
    return hash_to_unit_interval(HOLDOUT_SALT + package) < holdout


def find_files(packages: Sequence[str], standard_library: bool) -> list[SourceFile]:
    """Returns the files to read, without test files.

    Their order is fixed, because the first of two duplicate functions is kept.

    Args:
      packages: names of installed distributions.
      standard_library: whether to include the standard library.

    Raises:
      UserError: a package is not installed or has no list of its files.
    """
    files = list(_find_standard_library_files()) if standard_library else []
    for package in sorted(packages):
        files += _find_distribution_files(package)
    return [file for file in files if not explain_rejected_path(file.name)]


def _find_standard_library_files() -> Iterator[SourceFile]:
    """Yields the files of Python's own top-level modules, without files that a distributor or a
    build added to their folder.
    """
    root = Path(sysconfig.get_path('stdlib'))
    for module in sorted(sys.stdlib_module_names):
        paths = [root / f'{module}.py', *sorted((root / module).rglob('*.py'))]
        for path in paths:
            if path.is_file():
                yield SourceFile(module, path.relative_to(root).as_posix(), path)


def _find_distribution_files(name: str) -> Iterator[SourceFile]:
    """Yields the .py files that pip recorded for a distribution; its folder may also contain files
    of other distributions (orbax, google).
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f'data: the package {name!r} is not installed: install it or remove it from packages'
        ) from None
    if distribution.files is None:
        raise UserError(
            f'data: the package {name!r} was installed without a list of its files (RECORD): '
            f'install it with pip'
        )
    for path in sorted(distribution.files):
        # Paths with '..' are scripts outside of the packages.
        if path.suffix == '.py' and path.parts[0] != '..':
            yield SourceFile(name, path.as_posix(), Path(path.locate()))


def _compute_fingerprint(files: Sequence[SourceFile]) -> str:
    contents = (
        f'{file.package} {file.name} {blake2b(file.path.read_bytes()).hexdigest()}'
        for file in files
    )
    return digest_texts(str(EXTRACTION_VERSION), str(FILTERS_VERSION), *contents)


def _build_arrays(files: Sequence[SourceFile]) -> Arrays:
    """Reads every file and returns the pairs of all splits, as arrays for the cache."""
    problems = Problems()
    dropped: Counter[str] = Counter()
    with _disable_garbage_collection():
        found = list(_extract_all_functions(files, dropped, problems))
    seen = dropped.pop('seen', 0)
    for reason, find_duplicates in (
        ('exact duplicate', find_exact_duplicates),
        ('near duplicate', find_near_duplicates),
    ):
        is_duplicate = find_duplicates([function.code for _, function in found])
        dropped[reason] = int(is_duplicate.sum())
        found = [row for row, drop in zip(found, is_duplicate, strict=True) if not drop]
    counts = {'seen': seen, 'dropped': dropped, 'problems': problems.to_json()}
    return {'counts': json_to_array(counts), **_to_arrays(found)}


def _extract_all_functions(
    files: Sequence[SourceFile], dropped: Counter[str], problems: Problems
) -> Iterator[tuple[SourceFile, Function]]:
    for file in tqdm(files, desc='reading Python sources', unit='file', disable=None):
        problems.rows += 1
        try:
            found = extract_functions(decode_source(file.path.read_bytes()), dropped)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, 'lineno', None) or 1
            problems.add(BadRow('not valid Python', str(error)), f'{file.path}:{line}')
        else:
            yield from ((file, function) for function in found)


@contextlib.contextmanager
def _disable_garbage_collection() -> Iterator[None]:
    """Disables the cyclic garbage collector, which makes parsing a third faster: syntax trees are
    many small objects without cycles.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _to_arrays(found: Sequence[tuple[SourceFile, Function]]) -> Arrays:
    texts = {
        'ids': Strings.from_texts(
            f'{file.name}:{function.line} {function.name}' for file, function in found
        ),
        'docs': Strings.from_texts(function.doc for _, function in found),
        'codes': Strings.from_texts(function.code for _, function in found),
    }
    columns = {'packages': np.array([file.package for file, _ in found], str)}
    for key, strings in texts.items():
        columns |= {key: strings.bytes, f'{key}_starts': strings.starts}
    return columns
