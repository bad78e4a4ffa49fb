import collections

import numpy as np
import pytest

from cpt_jax.data.filters import near_duplicates, words
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
    """install(name, {path: source}) makes a distribution that importlib.metadata finds."""
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


def names_on_sides(holdout):
    """Two names of packages, one that is held out and one that is not."""
    names = [f'pack{i}' for i in range(1000)]
    return next(n for n in names if is_held_out(n, holdout)), next(
        n for n in names if not is_held_out(n, holdout)
    )


def read(split, packages, **more):
    return PythonSource(split, packages=packages, standard_library=False, **more)


def test_pairs_of_a_package(install):
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
    assert (
        source[0].y
        == distinct('one').replace('    """Does one with both of them."""\n', '').strip()
    )
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
    held, kept = names_on_sides(0.3)
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


def test_no_duplicate_is_on_both_sides(install):
    held, kept = names_on_sides(0.3)
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


def test_order_of_packages_does_not_matter(install):
    install('alpha', {'alpha/a.py': distinct('one')})
    install('beta', {'beta/a.py': distinct('one').replace('a + b', 'b + a')})
    forth, back = read('all', ('alpha', 'beta')), read('all', ('beta', 'alpha'))
    assert forth[0] == back[0]
    assert len(forth) == len(back) == 1
    assert forth.fingerprint == back.fingerprint


def test_other_installed_packages_change_nothing_and_a_changed_file_does(install):
    install('alpha', {'alpha/a.py': distinct('one')})
    before = read('all', ('alpha',)).fingerprint
    install('beta', {'beta/a.py': distinct('two')})
    assert read('all', ('alpha',)).fingerprint == before
    install('alpha', {'alpha/a.py': distinct('one') + '# a comment\n'})
    assert read('all', ('alpha',)).fingerprint != before
    assert read('all', ('alpha',)).fingerprint != read('all', ('alpha',), holdout=0.2).fingerprint


def test_second_time_reads_the_cache(install, cache, monkeypatch):
    install('alpha', {'alpha/a.py': distinct('one')})
    first = read('all', ('alpha',))
    with monkeypatch.context() as patch:
        patch.setattr(python_source, '_build', None)  # cannot be called
        second = read('all', ('alpha',))
    assert second[0] == first[0]
    assert second.summary() == first.summary()
    (path,) = cache.iterdir()
    path.write_bytes(b'broken')
    assert read('all', ('alpha',))[0] == first[0]


def test_missing_package():
    with pytest.raises(UserError, match="'no-such-thing' is not installed"):
        read('all', ('no-such-thing',))


def test_package_without_record(install):
    install('alpha', {'alpha/a.py': distinct('one')}, record=False)
    with pytest.raises(UserError, match="'alpha' was installed without a list of its files"):
        read('all', ('alpha',))


def test_nothing_to_read(install):
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
    with pytest.raises(UserError, match=r'alpha/bad.py:2: not Python that parses: .*2 of 3 rows'):
        read('all', ('alpha',), max_bad_share=0.6)


def test_default_corpus(session_cache, monkeypatch):
    """The embedded default data: enough to train on, enough held out, and nothing on both sides."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(session_cache))
    train, heldout, whole = PythonSource('train'), PythonSource('heldout'), PythonSource('all')
    assert 1_000 <= len(heldout) <= 3_000
    assert len(train) >= 0.85 * len(whole)
    assert len(train) + len(heldout) == len(whole) > 12_000
    sizes = collections.Counter(heldout.packages.tolist())
    assert max(sizes.values()) <= 0.4 * len(heldout)
    assert not set(train.packages) & set(heldout.packages)
    pairs = [whole[i] for i in range(len(whole))]
    assert len({pair.id for pair in pairs}) == len(whole)
    assert not near_duplicates([pair.y for pair in pairs]).any()
    assert all(
        len(words(pair.x)) > 2 and pair.y.startswith(('def ', 'async def ')) for pair in pairs
    )
    assert train.problems.bad == 0
    assert np.isin(['json', 'jax'], train.packages).all()


def test_default_packages_are_pinned(request):
    """So that everybody's corpus is the same."""
    lines = (request.config.rootpath / 'requirements.txt').read_text().splitlines()
    required = {line.split('==')[0].split('[')[0] for line in lines if '==' in line}
    assert set(DEFAULT_PACKAGES) <= required
