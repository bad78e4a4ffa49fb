import numpy as np
import pytest

from cpt_jax.prepare import near_duplicates, packages
from cpt_jax.prepare.keyed_items import PLACE
from cpt_jax.prepare.near_duplicates import (
    compute_signature,
    find_roots,
    merge_links,
    pack_places,
    unpack_places,
)
from cpt_jax.prepare.run import prepare
from cpt_jax.prepare.work_folder import WorkFolder
from cpt_jax.runtime.errors import UserError
from tests.conftest import WORDS
from tests.prepare.helpers import get_texts, make_config, make_document, write_texts


def edit(text: str, share: float, seed: int) -> str:
    """Returns a text with a share of its words replaced."""
    random = np.random.default_rng(seed)
    words = text.split(' ')
    for i in random.choice(len(words), round(share * len(words)), replace=False):
        words[i] = f'edited{random.integers(10**6)}'
    return ' '.join(words)


def test_planted_duplicates_are_found_and_nothing_else(tmp_path):
    clean = tmp_path / 'clean'
    clean.mkdir()
    for i in range(25):
        (clean / f'{i}.txt').write_text(make_document(i, sentences=60))
    config = make_config(text={'path': str(clean)})
    config['duplicates'] |= {'near': True}
    plain = prepare(config, tmp_path / 'plain')
    assert sum(plain['total']['dropped'].values()) == 0

    planted = tmp_path / 'planted'
    planted.mkdir()
    for i in range(5):
        text = make_document(i, sentences=60)
        (planted / f'exact{i}.txt').write_text(text)
        (planted / f'space{i}.txt').write_text(text.replace(' ', ' \n'))
        (planted / f'edited{i}.txt').write_text(edit(text, 0.05, i))
        (planted / f'rewritten{i}.txt').write_text(edit(text, 0.5, i))
    config['sources']['wild'] = config['sources']['text'] | {'path': str(planted)}
    config['output']['shard_mb'] = 0.01
    summary = prepare(config, tmp_path / 'output')
    dropped = {key: value for key, value in summary['total']['dropped'].items() if value}
    assert dropped == {'duplicate': 10, 'near duplicate': 5}
    kept = {*get_texts(tmp_path / 'output')}
    assert kept > {*get_texts(tmp_path / 'plain')}
    assert all('edited' in x + y for x, y in kept - {*get_texts(tmp_path / 'plain')})


def test_signatures_estimate_the_jaccard_similarity():
    random = np.random.default_rng(0)
    text = ' '.join(f'{word}{i}' for i, word in enumerate(random.choice(WORDS, 800)))
    for share in (0.02, 0.1, 0.3):
        other = edit(text, share, 1)
        windows = [
            {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
            for words in (text.split(), other.split())
        ]
        similarity = len(windows[0] & windows[1]) / len(windows[0] | windows[1])
        estimate = (compute_signature(text) == compute_signature(other)).mean()
        assert estimate == pytest.approx(similarity, abs=0.12)  # 3 deviations of 128 values
    assert compute_signature('too short for a signature') is None


def test_roots_are_the_smallest_connected_index():
    links = np.array([[4, 5], [2, 4], [6, 7], [5, 1]])
    assert find_roots(8, links).tolist() == [0, 1, 1, 3, 1, 1, 6, 6]
    assert find_roots(0, np.zeros((0, 2), int)).tolist() == []


def test_roots_of_random_links():
    """As a breadth-first search finds them."""
    random = np.random.default_rng(0)
    for size, number in ((40, 30), (150, 90), (150, 149)):
        links = random.integers(0, size, (number, 2))
        if number == 149:  # one path in random order, the longest way to the first index
            path = random.permutation(size)
            links = np.stack([path[1:], path[:-1]], -1)
        expected = np.arange(size)
        for _ in range(size):
            for a, b in links.tolist():
                expected[[a, b]] = min(expected[a], expected[b])
        assert find_roots(size, links).tolist() == expected.tolist()


def test_keys_are_stored_sorted_with_their_items(tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, '_SIGNATURES_AT_ONCE', 2)
    signatures = np.random.default_rng(0).integers(0, 2**32, (5, 128), np.uint32)
    signatures[3] = signatures[1]
    store = near_duplicates.SignatureStore()
    for item, signature in zip([2, 3, 5, 7, 11], signatures, strict=True):
        store.add(item, signature)
    folder = WorkFolder(tmp_path)
    store.save(folder, 0, partitions=3)
    rows = np.load(folder.get_path('bands', 0, '.npy'))
    keys = near_duplicates.compute_band_keys(signatures)
    expected = [
        (int(key), band, item)
        for item, row in zip([2, 3, 5, 7, 11], keys, strict=True)
        for band, key in enumerate(row)
    ]
    assert sorted(rows.tolist()) == sorted(expected) and (np.diff(rows['high']) >= 0).all()
    assert np.array_equal(
        np.load(folder.get_path('signatures', 0, '.npy')), signatures.astype(np.uint8)
    )
    near_duplicates.find_links(folder, 0, 1, 0.6)
    links = np.load(folder.get_path('links', 0, '.npy'))
    assert unpack_places(links).tolist() == [[(0, 3), (0, 7)]]


def test_links_of_several_bands_are_kept_once(monkeypatch):
    monkeypatch.setattr(near_duplicates, '_LINKS_AT_ONCE', 4)
    places = np.array([(0, 5), (1, 2), (1, 3), (2**32 - 1, 2**32 - 1)], PLACE)
    packed = pack_places(places)
    assert np.array_equal(unpack_places(packed), places) and (np.diff(packed) > 0).all()
    links = packed[np.array([[0, 1], [0, 2], [2, 3]])]
    parts = [links[[0, 1]], links[[1]], links, links[[2, 0]], links[:0]] * 8
    assert merge_links(parts).tolist() == links.tolist()


@pytest.mark.parametrize('name', ['rensa', 'py3langid'])
def test_missing_package_is_one_line(tmp_path, monkeypatch, name):
    config = make_config(text={'path': str(write_texts(tmp_path / 'texts', 1))})
    config['duplicates']['near'] = True
    config['filters']['languages'] = ('en',)
    monkeypatch.setattr(packages, 'find_spec', lambda found: None if found == name else found)
    with pytest.raises(UserError, match=rf'needs {name}: pip install'):
        prepare(config, tmp_path / 'output')
