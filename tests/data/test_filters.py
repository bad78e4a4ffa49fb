import ast
import random
from collections import Counter

import numpy as np
import pytest

from cpt_jax.data.filters import (
    explain_rejected_body,
    explain_rejected_name,
    explain_rejected_path,
    explain_rejected_text,
    extract_first_paragraph,
    find_exact_duplicates,
    find_near_duplicates,
    split_words,
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
def test_first_paragraph_is_extracted_on_one_line(docstring, paragraph):
    assert extract_first_paragraph(docstring) == paragraph


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
def test_dunder_and_test_names_are_rejected(name, reason):
    assert explain_rejected_name(name) == reason


@pytest.mark.parametrize(
    'path, reason', [('a/tests/b.py', 'test path'), ('a/Testing.py', 'test path'), ('a/b.py', '')]
)
def test_test_paths_are_rejected(path, reason):
    assert explain_rejected_path(path) == reason


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
def test_bodies_without_implementation_are_rejected(body, reason):
    assert explain_rejected_body(ast.parse(body).body) == reason


def test_body_with_only_a_docstring_is_rejected():
    assert explain_rejected_body([]) == 'no implementation'


@pytest.mark.parametrize(
    'doc, code, reason',
    [
        ('Returns it.', 'def f():\n    a()\n    b()', 'short documentation'),
        ('Returns it - !!!', 'def f():\n    a()\n    b()', 'short documentation'),
        ('Returns it all.', 'def f():\n\n    \n    return 1', 'short implementation'),
        ('Returns it all.', 'def f():\n    a()\n    return 1', ''),
    ],
)
def test_short_documentation_and_code_are_rejected(doc, code, reason):
    assert explain_rejected_text(doc, code) == reason


def test_exact_duplicates_ignore_white_space():
    texts = ['def f(): return  1', 'def g(): return 1', 'def f():\n\treturn 1', 'def f(): return 1']
    assert find_exact_duplicates(texts).tolist() == [False, False, True, True]


def are_similar(a, b):
    """Returns whether both texts have at least 10 words, and a Jaccard similarity of at least 0.8
    as sets and 0.7 as multisets.
    """
    a = Counter(split_words(a))
    b = Counter(split_words(b))
    if a.total() < 10 or b.total() < 10:
        return False
    sets = 10 * len(a.keys() & b.keys()) >= 8 * len(a.keys() | b.keys())
    return sets and 10 * (a & b).total() >= 7 * (a | b).total()


def find_by_brute_force(texts):
    kept = []
    near = []
    for text in texts:
        is_near = any(are_similar(text, other) for other in kept)
        near.append(is_near)
        if not is_near:
            kept.append(text)
    return near


def mutate(text, rng, vocabulary):
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
        texts += [text, *(mutate(text, rng, vocabulary) for _ in range(5))]
    rng.shuffle(texts)
    expected = find_by_brute_force(texts)
    assert 20 < sum(expected) < 300  # both results must occur
    assert find_near_duplicates(texts).tolist() == expected


def test_near_duplicates_at_the_thresholds():
    base = [f'w{i}' for i in range(10)]
    # Similarities of the sets: 8/12 and 9/11.
    texts = [' '.join(base), ' '.join([*base[:8], 'a', 'b']), ' '.join([*base[:9], 'c'])]
    assert find_near_duplicates(texts).tolist() == [False, False, True]
    # Similarity of the multisets: 10/20.
    assert find_near_duplicates([' '.join(base), ' '.join(base + base)]).tolist() == [False, False]
    # Fewer than 10 words.
    assert find_near_duplicates([' '.join(base[:9]), ' '.join(base[:9])]).tolist() == [False, False]


def test_kept_texts_have_no_near_duplicates():
    rng = random.Random(1)
    texts = [' '.join(rng.choices([f'w{i}' for i in range(12)], k=20)) for _ in range(300)]
    kept = np.array(texts)[~find_near_duplicates(texts)]
    assert 0 < len(kept) < 300
    assert not find_near_duplicates(kept.tolist()).any()
