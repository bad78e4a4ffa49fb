"""Answer matching equals DPR's regular expression and its loop over tokens."""

import random
import unicodedata

import pytest
import regex

from cpt_jax.benchmark_data.answers import contains_answer, make_searchable, tokenize_like_dpr


def dpr_has_answer(answers, passage):
    """Copy of has_answer in dpr/data/qa_validation.py, for match_type string."""
    text = tokenize_like_dpr(passage)
    for answer in map(tokenize_like_dpr, answers):
        for start in range(len(text) - len(answer) + 1):
            if answer and answer == text[start : start + len(answer)]:
                return True
    return False


def has_answer(answers, passage):
    return contains_answer(
        [make_searchable(answer) for answer in answers], make_searchable(passage)
    )


def test_tokens_equal_those_of_dprs_regular_expression():
    pattern = regex.compile(
        r'([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])',
        flags=regex.IGNORECASE + regex.UNICODE + regex.MULTILINE,
    )
    # The regex package knows a later Unicode version, so unassigned characters are left out.
    known = [code for code in range(0x20000) if unicodedata.category(chr(code)) not in ('Cn', 'Cs')]
    draw = random.Random(0)
    for _ in range(300):
        text = ''.join(
            chr(known[draw.randrange(draw.choice([128, 1000, 8000, len(known)]))])
            for _ in range(60)
        )
        assert tokenize_like_dpr(text) == [
            found.group().lower() for found in pattern.finditer(unicodedata.normalize('NFD', text))
        ]
    plain = ''.join(map(chr, range(128)))
    assert tokenize_like_dpr(plain) == [found.group().lower() for found in pattern.finditer(plain)]


@pytest.mark.parametrize(
    ('answers', 'passage', 'expected'),
    [
        (['14 December 1972'], 'It was on 14 DECEMBER 1972, at noon.', True),
        (['December 1972'], 'December, 1972', False),  # a comma is a token
        (['one'], 'Someone came. No-one left; stone.', True),
        (['one'], 'Someone, stones', False),
        (['Beyoncé'], 'Beyonce\u0301 sang', True),  # composed and decomposed
        (['Beyonce'], 'Beyoncé sang', False),
        (['', '?!', 'gone'], 'here', False),
        (['', '?!'], 'here?!', True),
        (['U.S.'], 'the u.s. army', True),
    ],
)
def test_answers_match_token_by_token(answers, passage, expected):
    assert has_answer(answers, passage) is dpr_has_answer(answers, passage) is expected


def test_random_texts_match_as_in_dprs_loop():
    draw = random.Random(1)
    words = ['a', 'B', 'ab', '.', ' ', '-', 'é', '1']
    cases = [
        (''.join(draw.choices(words, k=2)), ''.join(draw.choices(words, k=12))) for _ in range(2000)
    ]
    found = [has_answer([answer], passage) for answer, passage in cases]
    assert found == [dpr_has_answer([answer], passage) for answer, passage in cases]
    assert 100 < sum(found) < 1900
