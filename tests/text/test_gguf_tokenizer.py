"""Tokenizers of GGUF files give the ids of the tokenizers that they were converted from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.gguf_tokenizer import open_gguf_tokenizer
from cpt_jax.text.sentencepiece_model import ModelProto
from tests.text.test_pretrained_tokenizer import train_sentencepiece

FILE = Path('model.gguf')
BYTES = [*pre_tokenizers.ByteLevel.alphabet()]


def describe(values: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Returns metadata of a tokenizer, with arrays of numbers as they are read from a file."""
    return {
        f'tokenizer.ggml.{key}': np.array(value) if key in ('scores', 'token_type') else value
        for key, value in (values | others).items()
        if value is not None
    }


def make_byte_level(words: list[str], special: dict[str, int], **others: Any) -> dict[str, Any]:
    """Returns metadata of a byte-level BPE.

    Args:
      words: words of ASCII letters and digits, made by merges from left to right; a leading 'Ġ' is
        a space.
      special: further tokens, and their types.
      others: further keys.
    """
    tokens = [*special, *sorted(BYTES)]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            merge = f'{word[: end - 1]} {word[end - 1]}'
            if merge not in merges:
                merges.append(merge)
                tokens.append(word[:end])
    types = [special.get(token, 1) for token in tokens]
    values = {'model': 'gpt2', 'pre': 'gpt-2', 'tokens': tokens, 'token_type': types}
    return describe(values | {'merges': merges}, **others)


def make_sentencepiece(proto: Any, **others: Any) -> dict[str, Any]:
    """Returns metadata of a sentencepiece BPE."""
    values = {
        'model': 'llama',
        'pre': 'default',
        'tokens': [piece.piece for piece in proto.pieces],
        'token_type': [piece.type for piece in proto.pieces],
        'scores': [piece.score for piece in proto.pieces],
    }
    return describe(values, **others)


def split(metadata: dict[str, Any], text: str) -> list[str]:
    """Returns the tokens of a text."""
    tokens = metadata['tokenizer.ggml.tokens']
    (ids,) = open_gguf_tokenizer(FILE, metadata).encode([text], 'x', 1000)
    return [tokens[i] for i in ids]


def test_sentencepiece_bpe_gives_the_ids_of_sentencepiece():
    data = train_sentencepiece()
    proto = ModelProto.FromString(data)
    assert proto.trainer_spec.model_type == proto.trainer_spec.BPE
    expected = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = open_gguf_tokenizer(FILE, make_sentencepiece(proto, add_bos_token=True))
    texts = ['the file', '  two  spaces ', 'a', ' a', 'tab\tand\nline', 'ünïcode 日本 🙂', 'x' * 50]
    begin = [expected.bos_id()]
    for text, ids in zip(texts, tokenizer.encode(texts, 'x', 1000), strict=True):
        assert ids.tolist() == begin + expected.encode(text), text
        assert tokenizer.decode(ids[1:]) == expected.decode(ids[1:].tolist())
    assert tokenizer.bos_ids == tuple(begin)


def test_gemma_has_no_space_before_texts_and_merges_in_the_order_of_tokens():
    special = ['<pad>', '<eos>', '<bos>', '<unk>']
    others = ['\n', '\n\n', '  ', '    ', '<h1>']
    letters = ['a', 'b', 'c', '▁', '▁a', 'bc', 'ab']
    tokens = special + others + letters
    metadata = describe(
        {
            'model': 'llama',
            'tokens': tokens,
            'token_type': [3] * 4 + [4] * 5 + [1] * 7,
            # Scores that contradict the order: without it, 'ab' would be merged first.
            'scores': [-1000.0] * 9 + [0.0, 0.0, 0.0, 0.0, -9.0, -5.0, -1.0],
        },
        add_space_prefix=False,
        bos_token_id=2,
        eos_token_id=1,
        unknown_token_id=3,
        padding_token_id=0,
    )
    metadata['general.architecture'] = 'gemma3'
    assert split(metadata, 'abc a') == ['<bos>', 'a', 'bc', '▁a']
    assert split(metadata, 'a\n\n\nb') == ['<bos>', 'a', '\n\n', '\n', 'b']
    assert split(metadata, 'b     c') == ['<bos>', 'b', '    ', '▁', 'c']
    assert split(metadata, '<h1>a<eos>') == ['<bos>', '<h1>', 'a', '<eos>']
    metadata['general.architecture'] = 'llama'
    assert split(metadata, 'abc a') == ['<bos>', 'ab', 'c', '▁a']


RULES = {
    'gpt-2': ['aB', 'Ġ12', 'ĠĠ', 'Ġ', '3', 'Ġit', "'s"],
    'smollm': ['aB', 'Ġ', '1', '2', 'ĠĠĠ', '3', 'Ġit', "'s"],
    'llama-bpe': ['aB', 'Ġ', '12', 'ĠĠ', 'Ġ', '3', 'Ġit', "'s"],
    'qwen2': ['aB', 'Ġ', '1', '2', 'ĠĠ', 'Ġ', '3', 'Ġit', "'s"],
    'tekken': ['a', 'B', 'Ġ', '1', '2', 'ĠĠ', 'Ġ', '3', 'Ġit', "'s"],
    'gpt-4o': ['a', 'B', 'Ġ', '12', 'ĠĠ', 'Ġ', '3', "Ġit's"],
}


@pytest.mark.parametrize('pre', RULES)
def test_texts_are_split_by_the_rule_of_the_file(pre):
    words = ['Ġ12', '12', 'ĠĠĠ', "Ġit's", "'s", 'aB']
    assert split(make_byte_level(words, {}, pre=pre), "aB 12   3 it's") == RULES[pre]


def test_rules_differ_in_merges_and_normalization():
    words = ['abc']
    merged = make_byte_level(words, {}, pre='gpt-2')
    for metadata in (merged, merged | {'tokenizer.ggml.pre': 'llama-bpe'}):
        metadata['tokenizer.ggml.merges'] = ['b c']
        metadata['tokenizer.ggml.tokens'] = [
            'bc' if token == 'ab' else token for token in metadata['tokenizer.ggml.tokens']
        ]
    assert split(merged, 'abc') == ['a', 'bc']
    assert split(merged | {'tokenizer.ggml.pre': 'llama-bpe'}, 'abc') == ['abc']
    composed = [*'e\u0301'.encode()]
    assert len(split(merged, 'e\u0301')) == len(composed)
    assert len(split(merged | {'tokenizer.ggml.pre': 'qwen2'}, 'e\u0301')) == 2


def test_special_tokens_are_added_as_the_file_says():
    special = {'<s>': 3, '</s>': 3, '<|end▁of|>': 3, '[x y]': 4}
    metadata = make_byte_level(['ab'], special, bos_token_id=0, eos_token_id=1, padding_token_id=2)
    assert split(metadata, 'ab[x y]<|end▁of|>') == ['ab', '[x y]', '<|end▁of|>']
    tokenizer = open_gguf_tokenizer(FILE, metadata)
    assert tokenizer.find_begin_ids('tokenizer') == ()
    assert tokenizer.find_begin_ids('always') == (0,)
    without = metadata.copy()
    del without['tokenizer.ggml.bos_token_id']
    with pytest.raises(UserError, match="begin_token='always': model.gguf puts no token before"):
        open_gguf_tokenizer(FILE, without).find_begin_ids('always')
    assert split(metadata, '') == ['</s>']  # pooling needs a token
    for pre, begins in (('gpt-2', False), ('llama-bpe', True), ('tekken', True)):
        assert split(metadata | {'tokenizer.ggml.pre': pre}, 'a')[:-1] == ['<s>'] * begins
    flags = {'tokenizer.ggml.add_bos_token': True, 'tokenizer.ggml.add_eos_token': True}
    tokenizer = open_gguf_tokenizer(FILE, metadata | flags)
    assert split(metadata | flags, 'ab ab') == ['<s>', 'ab', 'Ġ', 'ab', '</s>']
    assert tokenizer.bos_ids == (0,)
    assert len(tokenizer.encode(['a' * 99], 'x', 7)[0]) == 7
    assert tokenizer.settings['padding'] == '<|end▁of|>' and tokenizer.settings['end'] == 1
    assert tokenizer.decode([4 + sorted(BYTES).index('a')]) == 'a'
    loaded = tokenizers.Tokenizer.from_buffer(tokenizer.file[1])
    assert loaded.get_vocab_size() == tokenizer.vocab_size == len(metadata['tokenizer.ggml.tokens'])


FAULTS = {
    'no kind': ({'model': None}, 'has no tokenizer'),
    'no tokens': ({'tokens': None}, 'has no tokenizer'),
    'kind': ({'model': 'rwkv'}, "model='rwkv' is not supported; supported are gpt2"),
    'rule': ({'pre': 'poro-chat'}, "pre='poro-chat': this way to split texts is not supported"),
    'no rule': ({'pre': None}, 'pre=None: this way to split texts'),
    'tokens': ({'tokens': 'abc'}, 'tokens is not a list of different texts'),
    'types': ({'token_type': np.ones(2)}, 'token_type has no number for each of 257 tokens'),
    'scores': ({'scores': 3}, 'scores has no number for each'),
    'merges': ({'merges': ['ab']}, "merges: 'ab' is not a pair"),
    'unknown merge': ({'merges': ['zz zz']}, 'its tokenizer cannot be read: '),
    'no merges': ({'merges': None}, 'has no tokenizer.ggml.merges'),
    'begin': ({'bos_token_id': 257}, 'bos_token_id=257 is not the id of one of 257 tokens'),
    'no scores': ({'model': 'llama', 'merges': None}, 'has neither tokenizer.ggml.scores nor'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_tokenizer_that_cannot_be_read_is_one_line(name):
    changes, message = FAULTS[name]
    metadata = make_byte_level(['ab'], {})
    metadata |= {f'tokenizer.ggml.{key}': value for key, value in changes.items()}
    for key, value in changes.items():
        if value is None:
            del metadata[f'tokenizer.ggml.{key}']
    with pytest.raises(UserError, match=message) as error:
        open_gguf_tokenizer(FILE, metadata)
    assert str(error.value).startswith('model.gguf: ') and '\n' not in str(error.value)
