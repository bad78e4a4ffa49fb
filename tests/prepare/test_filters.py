import pytest

from cpt_jax.prepare.filters import explain_rejected
from cpt_jax.prepare.settings import Filters
from cpt_jax.runtime.errors import UserError

ENGLISH = 'This is a sentence about the weather in the mountains, which is often cold and wet. '
GERMAN = 'Das ist ein Satz über das Wetter in den Bergen, das oft kalt und nass ist. '


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('\n'.join(f'{i}. {ENGLISH}' for i in range(9)), ''),
        (ENGLISH, 'fewer than 50 words'),
        ('supercalifragilistic ' * 60, 'mean length of words'),
        ('\n'.join(f'{i} {ENGLISH} ### # # # #' for i in range(9)), 'many symbols'),
        (
            '\n'.join(f'{i} 31 415 92 65 35 89 {ENGLISH}' for i in range(9)),
            'many words without letters',
        ),
        ('\n'.join(f'- {i}th {ENGLISH}' for i in range(9)), 'many bullet points'),
        ('\n'.join(f'{i}th {ENGLISH} ...' for i in range(9)), 'many lines with an ellipsis'),
        (f'{ENGLISH}\n' * 9, 'repeated lines'),
        ('\n'.join(f'{i}. {ENGLISH} Lorem ipsum' for i in range(9)), 'lorem ipsum'),
    ],
)
def test_quality_rules(text, reason):
    expected = f'quality: {reason}' if reason else ''
    assert explain_rejected(text, Filters(quality=True)) == expected
    assert explain_rejected(text, Filters()) == ''


def test_languages():
    filters = Filters(languages=('en', 'fr'), min_language_probability=0.9)
    assert explain_rejected(ENGLISH, filters) == ''
    assert explain_rejected(GERMAN, filters) == 'other language'
    assert explain_rejected('hi 1', Filters(languages=('en',), min_language_probability=1.0)) in (
        'unsure language', 'other language'
    )  # fmt: skip
    with pytest.raises(UserError, match="filters.languages: 'english' is unknown: choose from"):
        Filters(languages=('english',))


def test_lengths():
    filters = Filters(min_characters=3, max_characters=5)
    reasons = [explain_rejected(text, filters) for text in ('ab', 'abc', 'abcde', 'abcdef', ' \n ')]
    assert reasons == ['too short', '', '', 'too long', 'empty']
