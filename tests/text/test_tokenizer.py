"""Two file formats behind one face, and delimiters that no text can produce."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_file, train_tokenizer
from tests.conftest import sentences

SETTINGS = {
    'vocab_size': 400, 'model_type': 'bpe', 'normalization': 'identity', 'whitespace': 'prefix',
    'characters': 10**6, 'seed': 0,
}  # fmt: skip
NASTY = [
    '[ ] { }',
    '[]{}',
    '[x] = {y: [z]}',
    '[CLS] and [PAD] and </s> are text',
    '{{[[',
    ']',
    '',
    ' ',
    '\n\t',
]
ODD = ['café — naïve', '日本語 中文', '🎉👨‍👩', '\x00\x01\x7f\x80\xa0\ufffd', 'a\r\n\tb  c ']


def hugging_face_file(truncate: bool = False) -> bytes:
    """A tokenizer.json as a model's author ships it: special tokens that it adds itself, and with
    them a length to cut and pad to.
    """
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=['[CLS]', '[PAD]', '</s>'],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(sentences(200), trainer)
    made.post_processor = processors.TemplateProcessing(
        single='[CLS] $A </s>', special_tokens=[('[CLS]', 0), ('</s>', 2)]
    )
    if truncate:
        made.enable_truncation(4)
        made.enable_padding(length=16, pad_id=1, pad_token='[PAD]')
    return made.to_str().encode()


@pytest.fixture(scope='module', params=['sentencepiece', 'hugging_face'])
def either(request) -> Tokenizer:
    """One tokenizer of each format."""
    if request.param == 'sentencepiece':
        return train_tokenizer(sentences(200), **SETTINGS)
    return tokenizer_from_file('tokenizer.json', hugging_face_file())


def ids(tokenizer: Tokenizer, text: str, side: str = 'x', max_tokens: int = 10_000) -> list[int]:
    (array,) = tokenizer.encode([text], side, max_tokens)
    assert array.dtype == np.int32 and array.ndim == 1
    return array.tolist()


def test_delimiters_are_four_ids_behind_the_vocabulary(either):
    x, y = either.delimiters('x'), either.delimiters('y')
    assert [*x, *y] == list(range(either.vocab_size - 4, either.vocab_size))
    for text in NASTY + ODD + sentences(20):
        for side, (opening, closing) in {'x': x, 'y': y}.items():
            whole = ids(either, text, side)
            assert (whole[0], whole[-1]) == (opening, closing)
            assert all(0 <= i < either.vocab_size - 4 for i in whole[1:-1])


def test_sides_differ_in_their_delimiters_alone(either):
    for text in NASTY + sentences(20):
        assert ids(either, text, 'x')[1:-1] == ids(either, text, 'y')[1:-1]


def test_no_text_gives_the_two_delimiters(either):
    assert ids(either, '') == list(either.delimiters('x'))
    assert ids(either, '', 'y', 2) == list(either.delimiters('y'))
    assert either.encode([], 'x', 8) == []


@pytest.mark.parametrize('max_tokens', [2, 3, 8])
def test_the_closing_delimiter_survives_truncation(either, max_tokens):
    for text in sentences(50, words=40) + NASTY:
        cut, whole = ids(either, text, 'y', max_tokens), ids(either, text, 'y')
        assert len(cut) == min(max_tokens, len(whole))
        assert cut[:-1] == whole[: len(cut) - 1] and cut[-1] == either.delimiters('y')[1]


def test_less_than_the_two_delimiters_is_our_own_mistake(either):
    with pytest.raises(ValueError, match='max_tokens = 1'):
        either.encode(['a'], 'x', 1)


def test_a_batch_is_its_texts_one_at_a_time(either):
    texts = sentences(100) + NASTY + ODD
    assert [array.tolist() for array in either.encode(texts, 'x', 12)] == [
        ids(either, text, 'x', 12) for text in texts
    ]
    assert either.count(texts) == [len(ids(either, text)) - 2 for text in texts]


@pytest.mark.parametrize('text', ODD + NASTY)
def test_any_text_comes_back(either, text):
    assert either.decode(ids(either, text)) == text.strip()


def test_white_space_around_a_text_does_not_count(either):
    for white in (' ', '\n\t ', '\u3000\xa0\u2028'):
        assert ids(either, f'{white}list file{white}') == ids(either, 'list file') and ids(
            either, white
        ) == ids(either, '')
    assert ids(either, 'list\x1c') != ids(either, 'list')  # no white space to Unicode


def test_a_shared_closing_delimiter_is_that_of_x(either):
    shared = either.closed('shared')
    assert shared.delimiters('x') == either.delimiters('x')
    assert shared.delimiters('y') == (either.delimiters('y')[0], either.delimiters('x')[1])
    assert (
        shared.describe() == {'delimiters': {'x': ('[', ']'), 'y': ('{', ']')}}
        and shared.vocab_size == either.vocab_size
    )
    assert shared.fingerprint != either.fingerprint
    with pytest.raises(UserError, match="tokenizer.closing='mine': choose one of own, shared"):
        either.closed('mine')


def test_special_tokens_in_a_text_are_text():
    tokenizer = tokenizer_from_file('tokenizer.json', hugging_face_file())
    assert not {0, 1, 2} & set(ids(tokenizer, 'a [CLS] b [PAD] c </s>'))


def test_truncation_and_padding_within_a_tokenizer_json_do_not_count():
    plain, limited = (
        tokenizer_from_file('tokenizer.json', hugging_face_file(truncate))
        for truncate in (False, True)
    )
    for text in sentences(30, words=30) + NASTY:
        assert ids(limited, text) == ids(plain, text)


def test_training_twice_gives_the_same_bytes():
    for model_type in ('bpe', 'unigram'):
        first, again = (
            train_tokenizer(
                iter(sentences(200)), **SETTINGS | {'model_type': model_type, 'vocab_size': 300}
            )
            for _ in range(2)
        )
        assert first.file == again.file and first.fingerprint == again.fingerprint


def test_vocab_size_counts_the_delimiters_and_ends_where_the_pieces_do():
    assert train_tokenizer(sentences(200), **SETTINGS).vocab_size == 400
    assert train_tokenizer(sentences(200), **SETTINGS | {'vocab_size': 50_000}).vocab_size < 600


def test_characters_bound_what_is_read():
    texts = sentences(200)
    length = sum(map(len, texts[:50]))
    assert (
        train_tokenizer(texts, **SETTINGS | {'characters': length}).file
        == train_tokenizer(texts[:50], **SETTINGS).file
    )
    with pytest.raises(UserError, match='no text to train'):
        train_tokenizer([], **SETTINGS)


def test_drop_makes_a_word_one_piece_wherever_it_stands_and_loses_spaces_alone():
    drop, prefix = (
        train_tokenizer(sentences(200), **SETTINGS | {'whitespace': whitespace})
        for whitespace in ('drop', 'prefix')
    )
    (word,) = ids(drop, 'list')[1:-1]
    for text in ['file list', '[list]', 'file_list', '(list', '  list', 'list\tlist']:
        assert word in ids(drop, text)
        assert drop.decode(ids(drop, text)) == text.replace(' ', '')
    assert not any(
        'list' in prefix.decode([i]) for i in set(ids(prefix, 'list')) & set(ids(prefix, '[list]'))
    )
    assert ids(drop, 'a list file') == ids(drop, ' a  list file ')
    assert drop.count(['file list']) == [2] and len(ids(drop, 'file list', max_tokens=4)) == 4


def test_drop_is_kept_in_the_file(tmp_path):
    drop = train_tokenizer(sentences(200), **SETTINGS | {'whitespace': 'drop'})
    drop.save(tmp_path)
    for text in [*sentences(20), 'x <spaces dropped> y', *ODD]:
        assert ids(load_tokenizer(tmp_path), text) == ids(drop, text)
        assert drop.decode(ids(drop, text)) == text.replace(' ', '')


def test_fingerprints_differ_between_models_and_survive_a_file(either, tmp_path):
    others = [
        train_tokenizer(sentences(200), **SETTINGS | {'vocab_size': size}) for size in (350, 351)
    ]
    assert len({either.fingerprint, *(other.fingerprint for other in others)}) == 3
    either.save(tmp_path / 'a' / 'b')
    (file,) = (tmp_path / 'a' / 'b').iterdir()
    for path in (tmp_path / 'a' / 'b', file, str(file)):
        loaded = load_tokenizer(path)
        assert (loaded.fingerprint, loaded.vocab_size, loaded.file) == (
            either.fingerprint,
            either.vocab_size,
            either.file,
        )
        assert ids(loaded, 'list [file]') == ids(either, 'list [file]')


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer.model'])
@pytest.mark.parametrize(
    'content',
    [b'', b'garbage', b'{}', b'\x00\xff' * 100],
    ids=['empty', 'words', 'braces', 'bytes'],
)
def test_what_is_no_tokenizer_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=name) as error:
            load_tokenizer(path)
        assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_a_cut_file_is_one_line(either, tmp_path):
    name, data = either.file
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=name):
        load_tokenizer(tmp_path)


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match='nowhere: no such tokenizer file'):
        load_tokenizer(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='holds neither tokenizer.json nor tokenizer.model'):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('vocab_size', 100, 'sentencepiece cannot train'),
        ('vocab_size', 0, 'sentencepiece cannot train'),
        ('normalization', 'none', 'sentencepiece cannot train.*none'),
        ('model_type', 'word2vec', 'model_type=.word2vec.: choose one of bpe, unigram'),
        ('whitespace', 'none', 'whitespace=.none.: choose one of prefix, drop'),
    ],
)
def test_arguments_that_cannot_be_trained_with_are_one_line(key, value, expected):
    with pytest.raises(UserError, match='^tokenizer.*' + expected) as error:
        train_tokenizer(sentences(200), **SETTINGS | {key: value})
    assert '\n' not in str(error.value)


def test_texts_of_a_language_model_begin_and_end_with_ids_that_no_text_has():
    """The delimiters are none of them; a text that is cut does not end, and all of it counts, white
    space too.
    """
    made = train_tokenizer(sentences(200), **SETTINGS, boundaries=True)
    start, end = made.boundaries
    assert (start, end) == (1, 2)
    for text in NASTY + ODD + sentences(20) + ['  indented\n']:
        (whole,) = made.encode_language([text], 10_000)
        assert whole.dtype == np.int32 and (whole[0], whole[-1]) == (start, end)
        inside = whole[1:-1].tolist()
        assert not {start, end, *range(made.vocab_size - 4, made.vocab_size)} & {*inside}
        assert made.decode(inside) == text
        np.testing.assert_array_equal(
            made.encode_language([text], 10_000, end=False)[0], whole[:-1]
        )
        np.testing.assert_array_equal(made.encode_language([text], 3)[0], whole[:3])


def test_published_models_keep_their_own_ends_of_texts(either):
    with_specials = either.file[0] == 'tokenizer.json'
    if not with_specials:
        with pytest.raises(UserError, match='has no id that ends a text'):
            either.encode_language(['a'], 8)
        return
    # [CLS] stands before every text of this one, and </s> is there.
    assert either.boundaries == (0, 2)
    one = tokenizers.Tokenizer.from_str(hugging_face_file().decode())
    one.post_processor = processors.ByteLevel()
    one.add_special_tokens(['<|endoftext|>'])
    gpt2 = tokenizer_from_file('tokenizer.json', one.to_str().replace('</s>', 'other').encode())
    assert gpt2.boundaries[1] == one.token_to_id('<|endoftext|>')
