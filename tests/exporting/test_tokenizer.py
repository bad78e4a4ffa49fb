"""tokenizer.json of an export: equal ids to those of our tokenizer, for all texts and lengths."""

import inspect
import json
import os
import string
import textwrap

import pytest
import tokenizers
from tokenizers import normalizers

from cpt_jax.exporting.golden import GOLDEN_TEXTS
from cpt_jax.exporting.sentence_transformers import write_tokenizer
from cpt_jax.exporting.tokenizer import (
    export_pretrained_tokenizer,
    export_template_tokenizer,
    export_tokenizer,
)
from cpt_jax.text.hugging_face_json import HuggingFaceJson
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.tokenizer import Tokenizer, parse_tokenizer_file, train_tokenizer
from cpt_jax.text.tokenizer_files import open_tokenizer, read_tokenizer_config
from tests.conftest import sentences
from tests.text.test_tokenizer import make_hugging_face_file

REAL = [value.__doc__ or '' for value in vars(str).values()] + [
    inspect.getsource(module) for module in (textwrap, string, os)
]
LINES = [line for text in REAL for line in text.splitlines()]
ODD = [
    '', ' ', '     ', 'a', 'hello world', '  two  spaces  inside ',
    '\ttab\tand\nnew line\r\nwindows', 'snake_case __dunder__ _',
    'e\u0301 and \u00e9', 'X\u20e3 1\ufe0f\u20e3', '\U0001f468\u200d\U0001f469\u200d\U0001f467 '
                                                   'X\U0001f3fd', '\u1100\u1161\u11a8 한국어',
    'ﬁ Ｆｕｌｌ ｶﾞ Aﾞ \U0001d518', 'İstanbul ß ẞ Σίσυφος', '中文，测试', 'עברית العربية क्षि',
    '\u200bzero\u200dwidth', 'a\x00b\x1c',
    '\u3000wide\u3000', '▁▁ x', '<0x41> <unk> [CLS] <s>', '[ ] { }', 'word ' * 500, 'x' * 3000,
    'aaaaaaaaa aaa',
]  # fmt: skip
KINDS = {
    'as in base.py': {},
    'as in quickstart.py': {'normalization': 'nmt_nfkc_cf', 'whitespace': 'drop'},
    'nfkc': {'normalization': 'nfkc'},
    'unigram': {'model_type': 'unigram', 'normalization': 'nmt_nfkc'},
    'unigram, spaces dropped': {'model_type': 'unigram', 'whitespace': 'drop'},
}


def make_tokenizer(kind: str) -> Tokenizer:
    if kind == 'tokenizer.json':
        return parse_tokenizer_file('tokenizer.json', make_hugging_face_file())
    settings = {
        'model_type': 'bpe',
        'normalization': 'identity',
        'whitespace': 'prefix',
        'vocab_size': 700,
        'characters': 10**6,
        'seed': 0,
    }
    return train_tokenizer([*LINES, *sentences(50)], **settings | KINDS[kind])


@pytest.fixture(scope='module', params=[*KINDS, 'tokenizer.json'])
def tokenizer(request) -> Tokenizer:
    return make_tokenizer(request.param)


def load_exported(tokenizer: Tokenizer, side: str | None, max_tokens: int) -> tokenizers.Tokenizer:
    reader = tokenizers.Tokenizer.from_str(json.dumps(export_tokenizer(tokenizer, side).content))
    reader.enable_truncation(max_tokens)
    return reader


def check_ids(
    reader: tokenizers.Tokenizer, prompt: str, tokenizer: Tokenizer, side: str, max_tokens: int
) -> None:
    """Checks that ids are equal.

    The two libraries may choose different segmentations of equal score by a unigram model: those of
    the same pieces in another order ("-- -" and "- --").

    Args:
      reader: the exported tokenizer.
      prompt: prompt before each text.
      tokenizer: our tokenizer.
      side: side of the texts.
      max_tokens: maximum tokens of a text.
    """
    unigram = json.loads(reader.to_str())['model']['type'] == 'Unigram'
    # A unigram model whose vocabulary lacks digits would read "<0x41>" as the piece of a byte.
    texts = [text for text in [*LINES, *ODD] if not (unigram and '<0x41>' in text)]
    theirs = reader.encode_batch_fast([prompt + text for text in texts])
    for text, mine, other in zip(
        texts, tokenizer.encode(texts, side, max_tokens), theirs, strict=True
    ):
        equal = other.ids == list(mine)
        assert equal or (
            unigram
            and len(other.ids) == len(mine)
            and have_equal_pieces(reader, prompt, tokenizer, side, text)
        ), ascii(text)


def have_equal_pieces(
    reader: tokenizers.Tokenizer, prompt: str, tokenizer: Tokenizer, side: str, text: str
) -> bool:
    """Returns whether both segmentations of the whole text have the same pieces, in any order."""
    (mine,) = tokenizer.encode([text], side, 9000)
    truncation = reader.truncation
    reader.no_truncation()
    theirs = reader.encode(prompt + text).ids
    reader.enable_truncation(**truncation)
    return sorted(theirs) == sorted(mine)


@pytest.mark.parametrize('max_tokens', [3, 40, 9000])
def test_shared_closing_token_and_prompts_give_equal_ids(tokenizer, max_tokens):
    shared = tokenizer.with_closing('shared')
    reader, prompts = load_exported(shared, None, max_tokens), export_tokenizer(shared).prompts
    for side, name in [('x', 'query'), ('y', 'document')]:
        check_ids(reader, prompts[name], shared, side, max_tokens)


def test_tokenizer_of_one_side_needs_no_prompt(tokenizer):
    for side in ('x', 'y'):
        reader = load_exported(tokenizer, side, 12)
        check_ids(reader, '', tokenizer, side, 12)
        assert export_tokenizer(tokenizer, side).prompts == {}
    with pytest.raises(ValueError, match='two closing delimiters'):
        export_tokenizer(tokenizer)


def test_special_tokens_are_the_four_ids_after_the_vocabulary(tokenizer):
    content, _, ids, *_ = export_tokenizer(tokenizer.with_closing('shared'))
    reader = tokenizers.Tokenizer.from_str(json.dumps(content))
    first = tokenizer.vocab_size - 4
    names = ['<|query|>', '<|end|>', '<|document|>', '<|padding|>']
    assert [reader.token_to_id(name) for name in names] == [first, first + 1, first + 2, first + 3]
    assert reader.get_vocab_size(with_added_tokens=True) <= tokenizer.vocab_size
    assert ids == {'bos_token_id': None, 'eos_token_id': first + 1, 'pad_token_id': first + 3}


@pytest.mark.parametrize('kind', ['as in base.py', 'tokenizer.json', 'own begin token'])
def test_texts_in_a_template_begin_with_the_token_of_the_base(kind):
    """White space at the ends of a text is kept. '<|start|>' comes after the vocabulary, as in
    LLaMA 3.
    """
    has_own_token = kind == 'own begin token'
    tokenizer = make_tokenizer('tokenizer.json' if has_own_token else kind)
    start = 1
    if has_own_token:
        file = tokenizers.Tokenizer.from_str(tokenizer.file[1].decode())
        file.add_special_tokens(['<|start|>'])
        tokenizer = parse_tokenizer_file('tokenizer.json', file.to_str().encode())
        start = file.token_to_id('<|start|>')
        assert start == tokenizer.vocab_size - 5
        assert '<|start|>' not in json.loads(file.to_str())['model']['vocab']
    content = export_template_tokenizer(tokenizer, [start]).content
    reader = tokenizers.Tokenizer.from_str(json.dumps(content))
    texts = [*LINES, *ODD]
    for text, mine, other in zip(
        texts, tokenizer.encode_plain(texts), reader.encode_batch_fast(texts), strict=True
    ):
        assert other.ids == [start, *mine], text
    assert reader.get_vocab_size() == tokenizer.vocab_size


@pytest.mark.parametrize('normalizer', [None, normalizers.Replace(' ', '▁')])
def test_white_space_around_added_tokens_is_kept(normalizer):
    """As in Gemma, where line breaks and HTML tags are added tokens."""
    added = ['\n', '\n\n', '\t', '<b>', '[x y]']
    letters = [*string.ascii_lowercase, ' ', '▁']
    ids = {token: i for i, token in enumerate([*added, *letters, '<unk>'])}
    file = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, [('\n', '\n')], unk_token='<unk>', fuse_unk=True)
    )
    file.normalizer = normalizer
    file.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    tokenizer = parse_tokenizer_file('tokenizer.json', file.to_str().encode())
    texts = ['a\n  b', '\ta <b> b\n', '\n\n\n', 'a  [x y]  \n\n\n b', 'a\r\n b <b>', '', '<b> ']
    reader = load_exported(tokenizer, 'x', 20)
    for text, mine in zip(texts, tokenizer.encode(texts, 'x', 20), strict=True):
        assert reader.encode(text).ids == list(mine), text
    shared = tokenizer.with_closing('shared')
    reader, prompts = load_exported(shared, None, 20), export_tokenizer(shared).prompts
    for text, mine in zip(texts, shared.encode(texts, 'y', 20), strict=True):
        assert reader.encode(prompts['document'] + text).ids == list(mine), text


@pytest.mark.parametrize('side', ['left', 'right'])
def test_side_of_truncation_is_that_of_the_run(tmp_path, side):
    data = make_hugging_face_file()
    reader = tokenizers.Tokenizer.from_buffer(data)
    model = HuggingFaceJson(data, truncates_left=side == 'left')
    ours = PretrainedTokenizer('tokenizer.json', model, dict.fromkeys('xy', ''), False, 0, [], '')
    exported = export_pretrained_tokenizer(ours, {})
    write_tokenizer(tmp_path, exported, 9, exported.special_tokens)
    (tmp_path / 'config.json').write_text('{}')
    again = open_tokenizer(tmp_path, {}, ours.prompts, lower=False)
    assert read_tokenizer_config(tmp_path)['truncation_side'] == side
    text = GOLDEN_TEXTS[-1]
    assert len(reader.encode(text).ids) > 9
    assert again.encode([text], 'x', 9)[0].tolist() == ours.encode([text], 'x', 9)[0].tolist()
