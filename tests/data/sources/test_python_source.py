import collections

import numpy as np
import pytest

from cpt_jax.data.filters import find_near_duplicates, split_words
from cpt_jax.data.sources import python_source
from cpt_jax.data.sources.python_source import (
    DEFAULT_PACKAGES,
    PythonSource,
    find_files,
    is_held_out,
)
from cpt_jax.runtime.errors import UserError


def function(name, *lines):
    body = '\n'.join(f'    {line}' for line in lines)
    return f'def {name}(a, b):\n    """Does {name} with both of them."""\n{body}\n    return a\n'


def distinct(name):
    return function(name, *(f'{name}_{i} = a + b * {name}_{i + 1}' for i in range(6)))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function: install(name, {path: source}) creates a distribution that
    importlib.metadata finds.
    """
    site = tmp_path / 'site'
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def add(name, files, record=True):
        for path, source in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(source)
        info = site / f'{name}-1.0.dist-info'
        info.mkdir(exist_ok=True)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        if record:
            (info / 'RECORD').write_text(''.join(f'{path},,\n' for path in files))
        return site

    return add


def find_names(holdout):
    """Returns the names of a held-out package and of one that is not held out."""
    names = [f'pack{i}' for i in range(1000)]
    held_out = next(name for name in names if is_held_out(name, holdout))
    kept = next(name for name in names if not is_held_out(name, holdout))
    return held_out, kept


def read(split, packages, **more):
    return PythonSource(split, packages=packages, standard_library=False, **more)


def test_package_gives_documentation_and_functions(install):
    install(
        'alpha',
        {
            'alpha/a.py': 'import x\n\n' + distinct('one') + distinct('two'),
            'alpha/tests/b.py': distinct('three'),
        },
    )
    source = read('all', ('alpha',))
    assert [pair.id for pair in (source[0], source[1])] == ['alpha/a.py:3 one', 'alpha/a.py:12 two']
    assert source[0].x == 'Does one with both of them.'
    docstring = '    """Does one with both of them."""\n'
    assert source[0].y == distinct('one').replace(docstring, '').strip()
    assert len(source) == 2
    assert source.documents is None
    assert source.packages.tolist() == ['alpha', 'alpha']
    with pytest.raises(IndexError):
        source[2]


def test_only_recorded_files_are_read(install):
    site = install('alpha', {'alpha/a.py': distinct('one'), 'alpha/data.txt': 'no'})
    (site / 'alpha' / 'stranger.py').write_text(distinct('two'))
    assert [file.name for file in find_files(('alpha',), False)] == ['alpha/a.py']


def test_whole_packages_are_held_out(install):
    held, kept = find_names(0.3)
    install(held, {f'{held}/a.py': distinct('one') + distinct('two')})
    install(kept, {f'{kept}/a.py': distinct('three')})
    train, heldout, whole = (
        read(split, (held, kept), holdout=0.3) for split in ('train', 'heldout', 'all')
    )
    assert set(train.packages) == {kept}
    assert set(heldout.packages) == {held}
    assert len(train) + len(heldout) == len(whole) == 3
    assert len({train.fingerprint, heldout.fingerprint, whole.fingerprint}) == 3
    assert f'held out: {held}' in train.summary()


def test_no_duplicate_is_in_both_splits(install):
    held, kept = find_names(0.3)
    same = distinct('same')
    install(held, {f'{held}/a.py': same + distinct('one') + function('short', 'pass')})
    install(
        kept,
        {
            f'{kept}/a.py': same.replace('a + b * same_3', 'b + a * same_3 + 1')
            + distinct('two')
            + function('short', 'pass ')
        },
    )
    whole = read('all', (kept, held), holdout=0.3)
    assert sorted(pair.id.split()[1] for pair in map(whole.__getitem__, range(len(whole)))) == [
        'one',
        'same',
        'short',
        'two',
    ]
    assert '1 exact duplicate, 1 near duplicate' in whole.summary()


def test_order_of_packages_changes_nothing(install):
    install('alpha', {'alpha/a.py': distinct('one')})
    install('beta', {'beta/a.py': distinct('one').replace('a + b', 'b + a')})
    forward = read('all', ('alpha', 'beta'))
    backward = read('all', ('beta', 'alpha'))
    assert forward[0] == backward[0]
    assert len(forward) == len(backward) == 1
    assert forward.fingerprint == backward.fingerprint


def test_fingerprint_depends_on_the_files_of_the_named_packages_only(install):
    install('alpha', {'alpha/a.py': distinct('one')})
    before = read('all', ('alpha',)).fingerprint
    install('beta', {'beta/a.py': distinct('two')})
    assert read('all', ('alpha',)).fingerprint == before
    install('alpha', {'alpha/a.py': distinct('one') + '# a comment\n'})
    assert read('all', ('alpha',)).fingerprint != before
    assert read('all', ('alpha',)).fingerprint != read('all', ('alpha',), holdout=0.2).fingerprint


def test_second_use_reads_the_cache(install, cache, monkeypatch):
    install('alpha', {'alpha/a.py': distinct('one')})
    first = read('all', ('alpha',))
    with monkeypatch.context() as patch:
        patch.setattr(python_source, '_build_arrays', None)  # a call would fail
        second = read('all', ('alpha',))
    assert second[0] == first[0]
    assert second.summary() == first.summary()
    (path,) = cache.iterdir()
    path.write_bytes(b'broken')
    assert read('all', ('alpha',))[0] == first[0]


def test_missing_package_is_refused():
    with pytest.raises(UserError, match="'no-such-thing' is not installed"):
        read('all', ('no-such-thing',))


def test_package_without_record_is_refused(install):
    install('alpha', {'alpha/a.py': distinct('one')}, record=False)
    with pytest.raises(UserError, match="'alpha' was installed without a list of its files"):
        read('all', ('alpha',))


def test_package_without_pairs_is_refused(install):
    install('alpha', {'alpha/a.py': 'x = 1\n'})
    with pytest.raises(UserError, match='no pairs in python_source'):
        read('train', ('alpha',))


def test_files_that_do_not_parse_are_counted(install):
    site = install(
        'alpha',
        {'alpha/a.py': distinct('one'), 'alpha/bad.py': 'x = 1\ndef f(:\n', 'alpha/latin.py': ''},
    )
    (site / 'alpha' / 'latin.py').write_bytes(b'x = "\xe9"')
    source = read('all', ('alpha',), max_bad_share=0.7)
    assert len(source) == 1
    assert source.problems.rows == 3
    assert source.problems.bad == 2
    with pytest.raises(UserError, match=r'alpha/bad.py:2: not valid Python: .*2 of 3 rows'):
        read('all', ('alpha',), max_bad_share=0.6)


def test_default_corpus_is_large_enough_and_split_without_overlap(session_cache, monkeypatch):
    monkeypatch.setenv('CPT_JAX_CACHE', str(session_cache))
    train, heldout, whole = (PythonSource(split) for split in ('train', 'heldout', 'all'))
    assert 1_000 <= len(heldout) <= 3_000
    assert len(train) >= 0.85 * len(whole)
    assert len(train) + len(heldout) == len(whole) > 12_000
    sizes = collections.Counter(heldout.packages.tolist())
    assert max(sizes.values()) <= 0.4 * len(heldout)
    assert not set(train.packages) & set(heldout.packages)
    pairs = [whole[i] for i in range(len(whole))]
    assert len({pair.id for pair in pairs}) == len(whole)
    assert not find_near_duplicates([pair.y for pair in pairs]).any()
    assert all(
        len(split_words(pair.x)) > 2 and pair.y.startswith(('def ', 'async def ')) for pair in pairs
    )
    assert train.problems.bad == 0
    assert np.isin(['json', 'jax'], train.packages).all()


def test_default_packages_are_pinned(request):
    """Pinned versions give everyone the same corpus."""
    lines = (request.config.rootpath / 'requirements.txt').read_text().splitlines()
    required = {line.split('==')[0].split('[')[0] for line in lines if '==' in line}
    assert set(DEFAULT_PACKAGES) <= required
