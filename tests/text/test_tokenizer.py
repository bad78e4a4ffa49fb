"""Tokenizer: two file formats, and delimiters that no text can produce."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import Tokenizer, load_tokenizer, parse_tokenizer_file, train_tokenizer
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


def make_hugging_face_file(truncate: bool = False) -> bytes:
    """Returns a tokenizer.json as published with models: it adds special tokens itself.

    Args:
      truncate: whether the file also asks for truncation and padding.
    """
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=['[CLS]', '[PAD]', '</s>'],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator(sentences(200), trainer)
    trained.post_processor = processors.TemplateProcessing(
        single='[CLS] $A </s>', special_tokens=[('[CLS]', 0), ('</s>', 2)]
    )
    if truncate:
        trained.enable_truncation(4)
        trained.enable_padding(length=16, pad_id=1, pad_token='[PAD]')
    return trained.to_str().encode()


@pytest.fixture(scope='module', params=['sentencepiece', 'hugging_face'])
def either(request) -> Tokenizer:
    """A tokenizer of each format."""
    if request.param == 'sentencepiece':
        return train_tokenizer(sentences(200), **SETTINGS)
    return parse_tokenizer_file('tokenizer.json', make_hugging_face_file())


def ids(tokenizer: Tokenizer, text: str, side: str = 'x', max_tokens: int = 10_000) -> list[int]:
    (array,) = tokenizer.encode([text], side, max_tokens)
    assert array.dtype == np.int32 and array.ndim == 1
    return array.tolist()


def test_delimiters_have_the_four_ids_after_the_vocabulary(either):
    x = either.get_delimiters('x')
    y = either.get_delimiters('y')
    assert [*x, *y] == list(range(either.vocab_size - 4, either.vocab_size))
    for text in NASTY + ODD + sentences(20):
        for side, (opening, closing) in {'x': x, 'y': y}.items():
            whole = ids(either, text, side)
            assert (whole[0], whole[-1]) == (opening, closing)
            assert all(0 <= i < either.vocab_size - 4 for i in whole[1:-1])


def test_sides_differ_only_in_their_delimiters(either):
    for text in NASTY + sentences(20):
        assert ids(either, text, 'x')[1:-1] == ids(either, text, 'y')[1:-1]


def test_empty_text_is_encoded_as_two_delimiters(either):
    assert ids(either, '') == list(either.get_delimiters('x'))
    assert ids(either, '', 'y', 2) == list(either.get_delimiters('y'))
    assert either.encode([], 'x', 8) == []


@pytest.mark.parametrize('max_tokens', [2, 3, 8])
def test_the_closing_delimiter_survives_truncation(either, max_tokens):
    for text in sentences(50, words=40) + NASTY:
        truncated = ids(either, text, 'y', max_tokens)
        whole = ids(either, text, 'y')
        assert len(truncated) == min(max_tokens, len(whole))
        assert truncated[:-1] == whole[: len(truncated) - 1]
        assert truncated[-1] == either.get_delimiters('y')[1]


def test_max_tokens_without_room_for_delimiters_is_a_value_error(either):
    with pytest.raises(ValueError, match='max_tokens = 1'):
        either.encode(['a'], 'x', 1)


def test_batch_gives_the_same_ids_as_single_texts(either):
    texts = sentences(100) + NASTY + ODD
    assert [array.tolist() for array in either.encode(texts, 'x', 12)] == [
        ids(either, text, 'x', 12) for text in texts
    ]
    assert either.count(texts) == [len(ids(either, text)) - 2 for text in texts]


@pytest.mark.parametrize('text', ODD + NASTY)
def test_decode_restores_any_text(either, text):
    assert either.decode(ids(either, text)) == text.strip()


def test_white_space_around_a_text_is_stripped(either):
    for white in (' ', '\n\t ', '\u3000\xa0\u2028'):
        assert ids(either, f'{white}list file{white}') == ids(either, 'list file')
        assert ids(either, white) == ids(either, '')
    # U+001C does not have Unicode's White_Space property.
    assert ids(either, 'list\x1c') != ids(either, 'list')


def test_shared_closing_delimiter_is_that_of_x(either):
    shared = either.with_closing('shared')
    assert shared.get_delimiters('x') == either.get_delimiters('x')
    assert shared.get_delimiters('y') == (
        either.get_delimiters('y')[0],
        either.get_delimiters('x')[1],
    )
    assert shared.describe() == {'delimiters': {'x': ('[', ']'), 'y': ('{', ']')}}
    assert shared.vocab_size == either.vocab_size
    assert shared.fingerprint != either.fingerprint
    with pytest.raises(UserError, match="tokenizer.closing='mine': choose one of own, shared"):
        either.with_closing('mine')


def test_same_delimiters_enclose_both_sides(either):
    same = either.with_closing('same')
    assert same.get_delimiters('x') == either.get_delimiters('x')
    assert ids(same, 'list file', 'y') == ids(same, 'list file', 'x') == ids(either, 'list file')
    assert same.describe() == {'delimiters': {'x': ('[', ']'), 'y': ('[', ']')}}
    assert same.vocab_size == either.vocab_size
    assert same.fingerprint not in (either.fingerprint, either.with_closing('shared').fingerprint)


def test_names_of_special_tokens_in_a_text_are_plain_text():
    tokenizer = parse_tokenizer_file('tokenizer.json', make_hugging_face_file())
    assert not {0, 1, 2} & set(ids(tokenizer, 'a [CLS] b [PAD] c </s>'))


def test_truncation_and_padding_of_a_tokenizer_json_are_ignored():
    plain, limited = (
        parse_tokenizer_file('tokenizer.json', make_hugging_face_file(truncate))
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


def test_vocab_size_includes_delimiters_and_is_limited_by_the_texts():
    assert train_tokenizer(sentences(200), **SETTINGS).vocab_size == 400
    assert train_tokenizer(sentences(200), **SETTINGS | {'vocab_size': 50_000}).vocab_size < 600


def test_characters_limits_the_training_texts():
    texts = sentences(200)
    length = sum(map(len, texts[:50]))
    assert (
        train_tokenizer(texts, **SETTINGS | {'characters': length}).file
        == train_tokenizer(texts[:50], **SETTINGS).file
    )
    with pytest.raises(UserError, match='no text to train'):
        train_tokenizer([], **SETTINGS)


def test_drop_gives_a_word_one_id_everywhere_and_loses_only_spaces():
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
    assert drop.count(['file list']) == [2]
    assert len(ids(drop, 'file list', max_tokens=4)) == 4


def test_drop_is_saved_in_the_file(tmp_path):
    drop = train_tokenizer(sentences(200), **SETTINGS | {'whitespace': 'drop'})
    drop.save(tmp_path)
    for text in [*sentences(20), 'x <spaces dropped> y', *ODD]:
        assert ids(load_tokenizer(tmp_path), text) == ids(drop, text)
        assert drop.decode(ids(drop, text)) == text.replace(' ', '')


def test_fingerprints_differ_between_models_and_survive_saving(either, tmp_path):
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
def test_invalid_tokenizer_gives_a_one_line_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=name) as error:
            load_tokenizer(path)
        assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_truncated_file_gives_an_error(either, tmp_path):
    name, data = either.file
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=name):
        load_tokenizer(tmp_path)


def test_missing_files_give_an_error(tmp_path):
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
def test_invalid_training_argument_gives_a_one_line_error(key, value, expected):
    with pytest.raises(UserError, match='^tokenizer.*' + expected) as error:
        train_tokenizer(sentences(200), **SETTINGS | {key: value})
    assert '\n' not in str(error.value)


def test_language_model_texts_have_bos_and_eos_that_no_text_produces():
    """White space is not stripped, truncated texts have no EOS, and BOS and EOS are not
    delimiters.
    """
    tokenizer = train_tokenizer(sentences(200), **SETTINGS, bos_and_eos=True)
    bos, eos = tokenizer.bos_and_eos
    assert (bos, eos) == (1, 2)
    for text in NASTY + ODD + sentences(20) + ['  indented\n']:
        (whole,) = tokenizer.encode_language([text], 10_000)
        assert whole.dtype == np.int32
        assert (whole[0], whole[-1]) == (bos, eos)
        inside = whole[1:-1].tolist()
        delimiters = range(tokenizer.vocab_size - 4, tokenizer.vocab_size)
        assert not {bos, eos, *delimiters} & {*inside}
        assert tokenizer.decode(inside) == text
        (without_eos,) = tokenizer.encode_language([text], 10_000, end=False)
        np.testing.assert_array_equal(without_eos, whole[:-1])
        np.testing.assert_array_equal(tokenizer.encode_language([text], 3)[0], whole[:3])


def test_published_models_keep_their_own_bos_and_eos(either):
    with_specials = either.file[0] == 'tokenizer.json'
    if not with_specials:
        with pytest.raises(UserError, match='has no id that ends a text'):
            either.encode_language(['a'], 8)
        return
    # This tokenizer puts [CLS] before every text and has </s> in its vocabulary.
    assert either.bos_and_eos == (0, 2)
    like_gpt2 = tokenizers.Tokenizer.from_str(make_hugging_face_file().decode())
    like_gpt2.post_processor = processors.ByteLevel()
    like_gpt2.add_special_tokens(['<|endoftext|>'])
    data = like_gpt2.to_str().replace('</s>', 'other').encode()
    gpt2 = parse_tokenizer_file('tokenizer.json', data)
    assert gpt2.bos_and_eos[1] == like_gpt2.token_to_id('<|endoftext|>')
