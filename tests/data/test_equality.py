"""Which texts are equal: by their words, and by the tokens that the model reads."""

import numpy as np
import pytest

from cpt_jax.data.equality import (
    NORMALIZED,
    STRIPPED,
    compute_masked_share,
    count_repeated_texts,
    normalize_text,
    remove_added_tokens,
)
from cpt_jax.data.pairs import Pair, compute_content_id
from cpt_jax.data.prompted_source import PromptedSource
from cpt_jax.data.token_reader import PairTokenReader
from cpt_jax.text.tokenizer import train_tokenizer
from tests.conftest import sentences


class Pairs:
    """A source with the given pairs."""

    split = 'train'
    fingerprint = ''
    documents = None

    def __init__(self, *pairs: tuple):
        self.pairs = [Pair(*pair) for pair in pairs]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def read_ids(tokenizer, *pairs, rule=NORMALIZED, max_tokens=(32, 32)):
    reader = PairTokenReader([Pairs(*pairs)], tokenizer, *max_tokens, 2, rule)
    return reader(0, np.arange(len(pairs)))[1]


def is_equal(a_Z, b_Z) -> bool:
    return bool((a_Z == b_Z).any())


@pytest.fixture(scope='module')
def folding_tokenizer():
    return train_tokenizer(
        sentences(200),
        vocab_size=400,
        model_type='bpe',
        normalization='nmt_nfkc_cf',
        whitespace='prefix',
        characters=10**6,
        seed=0,
    )


@pytest.mark.parametrize(
    ('a', 'b'),
    [
        ('list  file\tparser', 'list file parser'),
        (' list\u00a0file\n', 'list file'),
        ('\ufb01le', 'file'),  # the ligature fi
        ('ﬁle １２', 'file 12'),
    ],
)
def test_texts_with_the_same_words_are_equal_on_any_side(tokenizer, a, b):
    ids = read_ids(tokenizer, (a, 'other'), ('another', b, (b, 'third')))
    assert ids.dtype == np.int32 and ids.shape == (2, 4, 2)
    assert is_equal(ids[0, 0], ids[1, 1]) and is_equal(ids[0, 0], ids[1, 2])
    assert not is_equal(ids[0, 0], ids[1, 3]) and not is_equal(ids[0, 0], ids[0, 1])
    assert (ids[0, 2:] == 0).all() and (ids[:, :2] > 0).all()


def test_case_counts_if_the_tokenizer_keeps_it(tokenizer, folding_tokenizer):
    pairs = ('List File', 'a'), ('list file', 'b')
    kept, folded = (read_ids(t, *pairs) for t in (tokenizer, folding_tokenizer))
    assert not is_equal(kept[0, 0], kept[1, 0])
    assert is_equal(folded[0, 0], folded[1, 0])
    # The first id is that of the words: a longer text is folded beyond its last token.
    long = 'list ' * 40
    folded = read_ids(folding_tokenizer, (long + 'A', 'a'), (long + 'a', long + 'a'))
    assert folded[0, 0, 0] == folded[1, 0, 0] == folded[1, 1, 0]


def test_texts_with_the_same_tokens_once_truncated_are_equal(tokenizer):
    header = 'list file parser value return index error string '
    pairs = (header + 'number', 'x'), (header + 'table', 'y'), ('x', header + 'model')
    for max_tokens, equal in [((6, 6), True), ((32, 32), False)]:
        ids = read_ids(tokenizer, *pairs, max_tokens=max_tokens)
        assert is_equal(ids[0, 0], ids[1, 0]) == equal
        assert is_equal(ids[0, 0], ids[2, 1]) == equal  # neither delimiters nor sides count
        assert (ids[:, 0, 0] != ids[[1, 2, 0], 0, 0]).all()  # the words differ


def test_earlier_rule_compares_stripped_characters(tokenizer):
    ids = read_ids(tokenizer, ('a  b ', 'a b'), rule=STRIPPED)
    assert ids.tolist() == [[[compute_content_id('a  b')], [compute_content_id('a b')], [0], [0]]]


def test_ids_do_not_depend_on_the_prompts_of_a_source(tokenizer):
    """The prompts of x and y differ, and the prompt's space merges with the first word."""
    pairs = ('list file', 'parser'), ('value', 'list file', ('list file',))
    prompted = PromptedSource(Pairs(*pairs), {'x': 'query: ', 'y': 'a text of the index: '})
    reader = PairTokenReader([prompted], tokenizer, 32, 32, 1)
    ids = reader(0, np.arange(2))[1]
    for z in range(2):
        assert ids[0, 0, z] == ids[1, 1, z] == ids[1, 2, z]
        assert len(set(ids[:, :2, z].ravel())) == 3
    plain = read_ids(tokenizer, *pairs)
    np.testing.assert_array_equal(ids[..., 0], plain[:, :3, 0])


@pytest.mark.parametrize(
    ('tokens', 'added', 'own'),
    [
        ([1, 5, 6, 2], [1, 2], [5, 6]),
        ([1, 2], [1, 2], []),
        ([1, 8, 5, 9, 2], [1, 8, 7, 2], [5, 9]),  # the prompt's 7 has merged with the text
        ([1, 8, 5, 2, 9], [1, 8, 2, 9], [5]),
        ([1, 8, 9, 2, 2], [1, 8, 9, 2], [2]),  # the text ends like what is behind it
        ([5], [], [5]),
        ([], [7], []),
    ],
)
def test_added_tokens_are_removed(tokens, added, own):
    assert remove_added_tokens(np.array(tokens, np.int32), added).tolist() == own


def test_normal_form_folds_case_on_request():
    assert normalize_text(' Straße\n\nⅣ ') == 'strasse iv'
    assert normalize_text(' Straße\n\nⅣ ', fold_case=False) == 'Straße IV'


def test_masked_share_and_repeated_texts_are_counted():
    ids = np.arange(1, 25, dtype=np.int32).reshape(4, 3, 2)
    assert compute_masked_share(ids) == 0
    ids[1, 0, 0] = ids[0, 1, 0]  # the first y is the second x
    assert compute_masked_share(ids) == 2 / 12
    ids[2:, 1, 1] = ids[0, 1, 1]  # three equal y
    assert compute_masked_share(ids) == 8 / 12
    assert count_repeated_texts(ids[:, 1]) == 3
    assert count_repeated_texts(ids[:, 0]) == 0
    assert compute_masked_share(ids[:1]) == 0


def test_positives_of_other_pairs_count_as_masked():
    ids = np.arange(1, 37, dtype=np.int32).reshape(3, 3, 4)
    ids[:, 1:, 3] = ids[:, 1:, 2]  # texts other than x have their word id in every column
    y = ids[:, 1, 2]
    ids[:, 0, 2:] = [[y[2], 0], [0, 0], [y[0], 0]]
    assert compute_masked_share(ids) == 2 / 6
    ids[1, 0, 2:] = y[0], y[2]
    assert compute_masked_share(ids) == 4 / 6
