import ast
import random
from collections import Counter

import numpy as np
import pytest

from cpt_jax.data.filters import (
    body_rejection,
    exact_duplicates,
    first_paragraph,
    name_rejection,
    near_duplicates,
    path_rejection,
    text_rejection,
    words,
)


@pytest.mark.parametrize(
    'docstring, paragraph',
    [
        ('Does this.', 'Does this.'),
        ('\n    Does this\n    and that.\n\n    More.\n    ', 'Does this and that.'),
        ('Does this.\n  \t \nMore.', 'Does this.'),
        ('  spaced   out  ', 'spaced out'),
        ('', ''),
        ('\n\n', ''),
    ],
)
def test_first_paragraph(docstring, paragraph):
    assert first_paragraph(docstring) == paragraph


@pytest.mark.parametrize(
    'name, reason',
    [
        ('__init__', 'dunder name'),
        ('__len__', 'dunder name'),
        ('test_it', 'test name'),
        ('runTests', 'test name'),
        ('_private', ''),
        ('__mangled', ''),
    ],
)
def test_name_rejection(name, reason):
    assert name_rejection(name) == reason


@pytest.mark.parametrize(
    'path, reason', [('a/tests/b.py', 'test path'), ('a/Testing.py', 'test path'), ('a/b.py', '')]
)
def test_path_rejection(path, reason):
    assert path_rejection(path) == reason


@pytest.mark.parametrize(
    'body, reason',
    [
        ('pass', 'no implementation'),
        ('...', 'no implementation'),
        ('raise NotImplementedError("soon")', 'no implementation'),
        ('"note"\npass\nraise ValueError', 'no implementation'),
        ('return 1', ''),
        ('check()\nraise ValueError', ''),
    ],
)
def test_body_rejection(body, reason):
    assert body_rejection(ast.parse(body).body) == reason


def test_body_of_a_docstring_alone_has_no_implementation():
    assert body_rejection([]) == 'no implementation'


@pytest.mark.parametrize(
    'doc, code, reason',
    [
        ('Returns it.', 'def f():\n    a()\n    b()', 'short documentation'),
        ('Returns it - !!!', 'def f():\n    a()\n    b()', 'short documentation'),
        ('Returns it all.', 'def f():\n\n    \n    return 1', 'short implementation'),
        ('Returns it all.', 'def f():\n    a()\n    return 1', ''),
    ],
)
def test_text_rejection(doc, code, reason):
    assert text_rejection(doc, code) == reason


def test_exact_duplicates_see_through_white_space():
    texts = ['def f(): return  1', 'def g(): return 1', 'def f():\n\treturn 1', 'def f(): return 1']
    assert exact_duplicates(texts).tolist() == [False, False, True, True]


def similar(a, b):
    """The definition, in words: Jaccard similarity of the sets >= 0.8 and of the multisets >= 0.7,
    from 10 words on.
    """
    a, b = Counter(words(a)), Counter(words(b))
    if a.total() < 10 or b.total() < 10:
        return False
    sets = 10 * len(a.keys() & b.keys()) >= 8 * len(a.keys() | b.keys())
    return sets and 10 * (a & b).total() >= 7 * (a | b).total()


def brute_force(texts):
    kept, near = [], []
    for text in texts:
        near.append(any(similar(text, other) for other in kept))
        kept += [] if near[-1] else [text]
    return near


def mutated(text, rng, vocabulary):
    tokens = text.split()
    for _ in range(rng.randrange(1, 8)):
        where = rng.randrange(len(tokens))
        tokens[where : where + rng.randrange(2)] = rng.choices(vocabulary, k=rng.randrange(3))
    return ' '.join(tokens) or 'a'


def test_near_duplicates_equal_brute_force():
    rng = random.Random(0)
    vocabulary = [f'w{int(40 * rng.random() ** 2)}' for _ in range(200)]
    texts = []
    for _ in range(60):
        text = ' '.join(rng.choices(vocabulary, k=rng.randrange(5, 40)))
        texts += [text, *(mutated(text, rng, vocabulary) for _ in range(5))]
    rng.shuffle(texts)
    expected = brute_force(texts)
    assert 20 < sum(expected) < 300  # both answers must occur
    assert near_duplicates(texts).tolist() == expected


def test_near_duplicates_at_the_thresholds():
    base = [f'w{i}' for i in range(10)]
    # 8 of 12 and 9 of 11 shared.
    texts = [' '.join(base), ' '.join([*base[:8], 'a', 'b']), ' '.join([*base[:9], 'c'])]
    assert near_duplicates(texts).tolist() == [False, False, True]
    # Multisets: 10 of 20.
    assert near_duplicates([' '.join(base), ' '.join(base + base)]).tolist() == [False, False]
    # Fewer than 10 words.
    assert near_duplicates([' '.join(base[:9]), ' '.join(base[:9])]).tolist() == [False, False]


def test_what_is_kept_has_no_near_duplicates():
    rng = random.Random(1)
    texts = [' '.join(rng.choices([f'w{i}' for i in range(12)], k=20)) for _ in range(300)]
    kept = np.array(texts)[~near_duplicates(texts)]
    assert 0 < len(kept) < 300
    assert not near_duplicates(kept.tolist()).any()
