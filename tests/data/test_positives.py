"""Positives of an x in other pairs of its source."""

import json

import numpy as np

from cpt_jax.data.equality import NORMALIZED, STRIPPED
from cpt_jax.data.positives import (
    MAX_OTHER_POSITIVES,
    compute_word_id,
    find_other_positives,
    make_positive_ids,
)
from cpt_jax.data.prompted_source import PromptedSource
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.data.token_reader import PairTokenReader


def test_positives_of_random_pairs_are_those_of_a_dict():
    random = np.random.default_rng(0)
    for count in [0, 1, *random.integers(2, 40, 100)]:
        x = random.integers(1, 9, count).astype(np.int32)
        y = random.integers(1, 5, count).astype(np.int32)
        by_x = {i: sorted({int(b) for a, b in zip(x, y, strict=True) if a == i}) for i in x}
        found = find_other_positives(x, y)
        for pair in range(count):
            expected = by_x[x[pair]]
            assert list(found.find(pair)) == (expected if len(expected) > 1 else [])
        assert found.most == max(map(len, by_x.values()), default=1) - 1


def test_number_of_other_positives_is_bounded():
    found = find_other_positives(np.ones(50, np.int32), np.arange(1, 51, dtype=np.int32))
    assert found.most == MAX_OTHER_POSITIVES
    assert len(found.find(7)) == 50
    assert sum(array.nbytes for array in found) <= 20 * 50


def test_ids_of_x_are_its_other_positives():
    word = compute_word_id
    found = make_positive_ids(['A  b', 'c'], [word('d'), word('a b')], 2)
    assert found.dtype == np.int32
    assert found.tolist() == [[word('d'), 0], [word('a b')] * 2, [word('c')] * 2]


def write_pairs(tmp_path) -> str:
    rows = [
        {'x': 'list', 'y': 'file', 'negatives': ['parser', 'Value']},
        {'x': 'table', 'y': 'value'},
        {'x': 'List ', 'y': 'value'},
        {'x': 'list', 'y': 'file'},
    ]
    path = tmp_path / 'pairs.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def test_positive_of_another_row_equals_x(tokenizer, tmp_path):
    """'value' is a positive of 'list' in the third row, and so no negative in the others."""
    plain = JsonlSource(write_pairs(tmp_path), 'all')
    prompted = PromptedSource(plain, {'x': 'query: ', 'y': 'text: '})
    for source in (plain, prompted):
        reader = PairTokenReader([source], tokenizer, 32, 32, 2)
        ids = reader(0, np.arange(4))[1]
        assert ids.shape == (4, 4, 3) and reader.ids_per_text == 3
        word = [compute_word_id(text) for text in ('file', 'value', 'parser')]
        assert ids[:, 0, 2].tolist() == [word[1], 0, word[0], word[1]]
        assert ids[:, 1, 2].tolist() == [word[0], word[1], word[1], word[0]]
        assert ids[0, 2:, 2].tolist() == [word[2], word[1]]
        assert not ids[1:, 2:].any()


def test_runs_of_before_have_no_other_positives(tokenizer, tmp_path):
    for rule, positives in [(STRIPPED, 0), (NORMALIZED, 1)]:
        source = JsonlSource(write_pairs(tmp_path), 'all', equal_texts=rule)
        assert source.most_positives == positives
    reader = PairTokenReader([source], tokenizer, 32, 32, 2, STRIPPED)
    assert reader(0, np.arange(4))[1].shape == (4, 4, 1)


def test_texts_without_docstrings_are_compared_as_they_are_trained_on(tmp_path):
    """The raw x's differ behind their first paragraph, and the raw y's in their docstrings."""
    code = 'def f(x):\n    """{}"""\n    return x + {}'
    rows = [
        {'x': 'Adds.\n\nOne.', 'y': code.format('Adds.', 1)},
        {'x': 'Adds.\n\nTwo.', 'y': code.format('Adds.', 2)},
        {'x': 'Adds.', 'y': code.format('Adds!', 1)},
    ]
    path = tmp_path / 'code.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert JsonlSource(str(path), 'all').most_positives == 0
    source = JsonlSource(str(path), 'all', codesearchnet=True)
    assert source.most_positives == 1
    one, two, _ = (compute_word_id(source[i].y) for i in range(3))
    for i, other in enumerate([two, one, two]):
        assert sorted(source[i].positives) == sorted([one, two])
        ids = make_positive_ids([source[i].y], source[i].positives, 1)
        assert ids[0].tolist() == [other]
