"""Tokenizers of pretrained directories in every file format: ids equal those of transformers (kept
in a golden) and llama2.c.
"""

import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.hugging_face_json import HuggingFaceJson
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer, restore_tokenizer
from cpt_jax.text.tokenizer import parse_tokenizer_file
from cpt_jax.text.tokenizer_files import open_tokenizer
from tests.conftest import sentences
from tests.goldens.golden import read_golden

TEXTS = [
    *sentences(10),
    '',
    'list   file',
    'token \n\n\tfile\r\n  value ',
    'Ünïcödé \U0001f389\U0001f469\u200d\U0001f4bb e\u0301',  # NFC composes the last two characters
    "I'll index 12345 rows, it's 'quoted' f(x)[0] == {y}",
    'a <|endoftext|> list </s> and<s>file <unk> <pad><mask> [x]  [y]  row[z]',
    '</s>list <s> file',
    '\u2581list \u2581 file',
]
BEGINS_WITH_SPACE = [' ', ' list', '   list file', ' <s> list']
PROMPTS = {'x': '', 'y': 'row: '}
LIMITS = 10_000, 5


def write_json_files(folder: Path, **files) -> Path:
    """Writes a JSON file for each keyword; returns the directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    return folder


def write_byte_level(folder: Path, special: list[str], **files) -> Path:
    """Writes vocab.json and merges.txt, the format of GPT-2's tokenizer; returns the directory."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {
        'initial_alphabet': tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        'show_progress': False,
    }
    trained.train_from_iterator(
        sentences(200),
        tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=special, **options),
    )
    write_json_files(folder, **files)
    trained.model.save(str(folder))
    return folder


def train_sentencepiece(**options) -> bytes:
    """Trains a sentencepiece model like LLaMA's; returns the content of its file."""
    written = io.BytesIO()
    options = {
        'normalization_rule_name': 'identity',
        'remove_extra_whitespaces': False,
        'byte_fallback': True,
    } | options
    kind = {'model_type': 'bpe', 'vocab_size': 340, 'hard_vocab_limit': False, 'minloglevel': 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(200)), model_writer=written, **kind | options
    )
    return written.getvalue()


def write_sentencepiece(folder: Path, data: bytes | None = None, **files) -> Path:
    """Writes tokenizer.model and JSON files; returns the directory."""
    write_json_files(folder, **files)
    (folder / 'tokenizer.model').write_bytes(data or train_sentencepiece())
    return folder


def open_directory(folder: Path) -> PretrainedTokenizer:
    return open_tokenizer(
        folder, json.loads((folder / 'config.json').read_text()), PROMPTS, lower=False
    )


def token(content: str, **flags) -> dict:
    return {
        'content': content,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'single_word': False,
        'special': True,
    } | flags


OPT_PARTS = {'bos_token': '</s>', 'eos_token': '</s>', 'unk_token': '</s>', 'pad_token': '<pad>'}
OPT = {
    part: {'__type': 'AddedToken', **token(name, normalized=True)}
    for part, name in OPT_PARTS.items()
}
OPT |= {'add_bos_token': True, 'add_prefix_space': False, 'errors': 'replace'}
ADDED = {
    '330': token('[x]', lstrip=True),
    '331': token('[y]', rstrip=True, special=False),
    '332': token('[z]', single_word=True),
}
QWEN = {
    'added_tokens_decoder': ADDED | {'0': token('<|endoftext|>')},
    'bos_token': None,
    'eos_token': '<|endoftext|>',
}
BYTE_LEVEL = {
    'gpt2': (['<|endoftext|>'], {'config': {'model_type': 'gpt2'}}),
    'gpt2, all around': (
        ['<|endoftext|>'],
        {
            'config': {'model_type': 'gptj'},
            'tokenizer_config': {
                'add_prefix_space': True,
                'add_bos_token': True,
                'add_eos_token': True,
                'bos_token': '<s>',
            },
        },
    ),
    'opt': (
        ['<s>', '<pad>', '</s>', '<unk>'],
        {
            'config': {'model_type': 'opt'},
            'tokenizer_config': OPT | {'tokenizer_class': 'GPT2Tokenizer'},
        },
    ),
    'opt, older': (
        ['<s>', '<pad>', '</s>', '<unk>'],
        {
            'config': {'model_type': 'opt'},
            'tokenizer_config': {'add_bos_token': True, 'unk_token': '<unk>'},
            'special_tokens_map': {
                'bos_token': token('</s>'),
                'eos_token': token('</s>', normalized=True),
                'pad_token': '<pad>',
            },
            'added_tokens': {'[x]': 330, '<mask>': 331},
        },
    ),
    'codegen': (
        ['<|endoftext|>'],
        {
            'config': {'model_type': 'codegen'},
            'tokenizer_config': {'tokenizer_class': 'CodeGenTokenizer'},
        },
    ),
    'neox': (['<|endoftext|>', '<|padding|>'], {'config': {'model_type': 'gpt_neox'}}),
    'qwen2': (
        ['<|endoftext|>'],
        {
            'config': {'model_type': 'qwen2'},
            'tokenizer_config': QWEN | {'tokenizer_class': 'Qwen2Tokenizer'},
        },
    ),
    'qwen3': (['<|endoftext|>'], {'config': {'model_type': 'qwen3'}}),
}
PIECES = {
    'llama': {'add_bos_token': True, 'add_eos_token': False, 'legacy': False},
    'llama, both': {
        'add_bos_token': True,
        'add_eos_token': True,
        'bos_token': OPT['bos_token'],
        'eos_token': '</s>',
    },
    'llama, none': {'add_bos_token': False},
    'llama, legacy': {'add_bos_token': True, 'legacy': True, 'pad_token': '<pad>'},
    'llama, added': {
        'add_bos_token': True,
        'added_tokens_decoder': {str(int(i) + 10): added for i, added in ADDED.items()},
    },
}


def write_case_directory(case: str, folder: Path) -> tuple[Path, list[str]]:
    """Writes the directory of a case; returns its path and the texts to compare."""
    if case in BYTE_LEVEL:
        special, files = BYTE_LEVEL[case]
        return write_byte_level(folder, special, **files), TEXTS + BEGINS_WITH_SPACE
    config = PIECES[case] | {'tokenizer_class': 'LlamaTokenizer'}
    write_sentencepiece(folder, config={'model_type': 'llama'}, tokenizer_config=config)
    texts = [
        text
        for text in TEXTS
        if not text.startswith('\u2581') and (case != 'llama, legacy' or '> ' not in text)
    ]
    return folder, [*texts, '<s>list</s>file']


def check_ids(case: str, folder: Path, texts: list[str]) -> None:
    """Compares all ids with the golden, untruncated and truncated, with and without a prompt."""
    expected = read_golden('pretrained_tokenizer').facts[case]
    ours = open_directory(folder)
    assert ours.vocab_size == expected['ids']
    for limit in LIMITS:
        for side in PROMPTS:
            found = ours.encode(texts, side, limit)
            for text, mine, right in zip(texts, found, expected[f'{side} {limit}'], strict=True):
                assert mine.dtype == np.int32, text
                assert ' '.join(map(str, mine)) == (right or '0'), text


@pytest.mark.parametrize('case', BYTE_LEVEL)
def test_vocab_and_merges_give_the_ids_of_transformers(tmp_path, case):
    folder, texts = write_case_directory(case, tmp_path)
    check_ids(case, folder, texts)
    first = open_directory(folder).encode([''], 'x', 10)[0].tolist()
    assert first == {'gpt2, all around': [330, 0], 'opt': [2], 'opt, older': [2]}.get(case, [0])


def test_text_without_tokens_is_encoded_as_eos(tmp_path):
    for config, end in [
        ({'eos_token_id': 7}, 7),
        ({'eos_token_id': [5, 6]}, 5),
        ({'eos_token_id': 999, 'bos_token_id': 3}, 3),
        ({}, 0),
    ]:
        folder = write_byte_level(
            tmp_path, ['<|endoftext|>'], config={'model_type': 'gpt2'} | config
        )
        assert open_directory(folder).encode(['', 'l'], 'x', 10)[0].tolist() == [end]
    with_bos = write_byte_level(
        tmp_path,
        ['<|endoftext|>'],
        config={'eos_token_id': 7},
        tokenizer_config={'add_bos_token': True},
    )
    assert open_directory(with_bos).encode([''], 'x', 10)[0].tolist() == [0]


@pytest.mark.parametrize('case', PIECES)
def test_sentencepiece_models_give_the_ids_of_transformers(tmp_path, case):
    folder, texts = write_case_directory(case, tmp_path)
    data = (folder / 'tokenizer.model').read_bytes()
    assert sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size() == 340
    check_ids(case, folder, texts)


def test_text_with_leading_spaces_has_the_ids_of_sentencepiece(tmp_path):
    """transformers' BPE omits one of the spaces."""
    folder = write_sentencepiece(tmp_path, config={'model_type': 'llama'})
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))
    ours = open_directory(folder)
    texts = [*BEGINS_WITH_SPACE[:3], TEXTS[-1]]
    for text, ids in zip(texts, ours.encode(texts, 'x', 100), strict=True):
        # Without `add_bos_token`, BOS is prepended for LLaMA.
        assert ids.tolist() == [1, *model.encode(text)]
    assert ours.encode(['', ' a <s> list'], 'x', 100)[0].tolist() == [1]


@pytest.mark.parametrize('prefix', [True, False])
def test_other_sentencepiece_models_keep_their_ids(tmp_path, prefix):
    """Unigram with normalization, with or without (Gemma) a space before texts, and no <s>."""
    data = train_sentencepiece(
        model_type='unigram',
        normalization_rule_name='nmt_nfkc',
        remove_extra_whitespaces=True,
        add_dummy_prefix=prefix,
        bos_id=-1,
        vocab_size=310,
    )
    folder = write_json_files(
        tmp_path, config={'model_type': 'gemma'}, tokenizer_config={'add_eos_token': True}
    )
    (folder / 'spiece.model').write_bytes(data)
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = open_directory(folder)
    assert ours.source == 'spiece.model'
    texts = [*sentences(5), 'ﬁle  list ']
    for text, ids in zip(texts, ours.encode(texts, 'x', 100), strict=True):
        assert ids.tolist() == [*model.encode(text), model.eos_id()]


def convert_to_llama2c(data: bytes) -> bytes:
    """Returns the tokenizer.bin that llama2.c's tokenizer.py writes for a sentencepiece model."""
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    texts = [model.id_to_piece(i).replace('\u2581', ' ') for i in range(model.get_piece_size())]
    texts[1:3] = ['\n<s>\n', '\n</s>\n']
    rows = [(text.encode(), model.get_score(i)) for i, text in enumerate(texts)]
    return struct.pack('<i', max(len(text) for text, _ in rows)) + b''.join(
        struct.pack('<fi', s, len(t)) + t for t, s in rows
    )


def encode_as_llama2c(data: bytes, text: str) -> list[int]:
    """Returns ids as `encode` of llama2.c's run.c computes them, line by line, with <s> but without
    </s>.
    """
    pieces = []
    offset = 4
    while offset < len(data):
        score, length = struct.unpack_from('<fi', data, offset)
        pieces.append((data[offset + 8 : offset + 8 + length], score))
        offset += 8 + length
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokens = [1] + ([ids[b' ']] if text else [])
    for character in text:
        found = ids.get(character.encode())
        tokens += [found] if found is not None else [byte + 3 for byte in character.encode()]
    while True:
        joined = [
            ids.get(pieces[a][0] + pieces[b][0]) for a, b in zip(tokens, tokens[1:], strict=False)
        ]
        best = max(
            (i for i in range(len(joined)) if joined[i] is not None),
            key=lambda i: (pieces[joined[i]][1], -i),
            default=None,
        )
        if best is None:
            return tokens
        tokens[best : best + 2] = [joined[best]]


def test_tokenizer_bin_gives_the_ids_of_llama2c(tmp_path):
    data = train_sentencepiece()
    folder = write_json_files(tmp_path, config={'model_type': 'llama'})
    (folder / 'tok340.bin').write_bytes(convert_to_llama2c(data))
    write_sentencepiece(tmp_path / 'same', data, config={'model_type': 'llama'})
    ours = open_directory(folder)
    same = open_directory(tmp_path / 'same')
    texts = [
        'a b  c\n\nUpper Case',
        *(text for text in TEXTS + BEGINS_WITH_SPACE if '<' not in text and '\u2581' not in text),
    ]
    for text, mine, other in zip(
        texts, ours.encode(texts, 'x', 1000), same.encode(texts, 'x', 1000), strict=True
    ):
        assert (
            mine.tolist() == other.tolist() == encode_as_llama2c(convert_to_llama2c(data), text)
        ), text
    (folder / 'tok340.bin').write_bytes(convert_to_llama2c(data)[:-1])
    with pytest.raises(UserError, match=r'tok340\.bin: cannot be read: it is cut short'):
        open_directory(folder)


@pytest.mark.parametrize('kind', ['byte level', 'sentencepiece'])
def test_run_encodes_a_text_with_the_same_ids_between_delimiters(tmp_path, kind):
    if kind == 'sentencepiece':
        folder = write_sentencepiece(
            tmp_path, config={'model_type': 'llama'}, added_tokens={'[x]': 340}
        )
    else:
        folder = write_byte_level(
            tmp_path, ['<s>', '<pad>', '</s>'], config={'model_type': 'opt'}, tokenizer_config=OPT
        )
    ours = open_directory(folder)
    plain = parse_tokenizer_file(*ours.file)
    for text in ['', *sentences(5), 'Ünï\U0001f389']:
        (own,) = ours.encode([text], 'x', 100)
        (ids,) = plain.encode([text], 'x', 102)
        assert ids[1:-1].tolist() == own.tolist()[1:]
        assert ids[0] == plain.vocab_size - 4
    assert plain.encode(['</s>'], 'x', 100)[0].size > 3  # encoded as plain text
    assert plain.vocab_size == (344 if kind == 'sentencepiece' else 334)
    assert ours.vocab_size == (341 if kind == 'sentencepiece' else 330)


def test_fingerprint_depends_on_all_settings_that_change_ids(tmp_path):
    data = train_sentencepiece()
    configs = [
        {},
        {'add_eos_token': True},
        {'legacy': True},
        {'pad_token': '<pad>'},
        {'add_bos_token': False},
    ]
    folders = [
        write_sentencepiece(tmp_path / str(i), data, config={}, tokenizer_config=config)
        for i, config in enumerate(configs)
    ]
    assert len({open_directory(folder).fingerprint for folder in folders}) == len(configs)
    assert open_directory(folders[0]).fingerprint == open_directory(folders[0]).fingerprint
    byte_level_folders = [
        write_byte_level(
            tmp_path / f'b{i}', ['</s>'], config={}, tokenizer_config={'add_prefix_space': i == 2}
        )
        for i in range(3)
    ]
    first, second, with_prefix_space = (
        open_directory(folder).fingerprint for folder in byte_level_folders
    )
    assert first == second
    assert first != with_prefix_space


def write_wordpiece(folder: Path, tokenizer_config: dict, **truncation) -> Path:
    """Writes a tokenizer.json that lower-cases, as BERT's, with a few words."""
    words = ['[UNK]', '[CLS]', 'list', 'List', 'über', 'uber', '你', '好', '你好', 'Über', '[SEP]']
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token='[UNK]'))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 10)]
    )
    if truncation:
        tokenizer.enable_truncation(2, **truncation)
    folder.mkdir()
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps(tokenizer_config))
    (folder / 'config.json').write_text('{"model_type": "bert"}')
    return folder


BERT_IDS = {
    'as it is': ({}, [2, 5, 6, 7]),
    'cased': ({'do_lower_case': False}, [3, 9, 6, 7]),
    'accents': ({'strip_accents': False}, [2, 4, 6, 7]),
    'Chinese': ({'tokenize_chinese_chars': False}, [2, 5, 8]),
    'another class': (
        {'do_lower_case': False, 'tokenizer_class': 'PreTrainedTokenizerFast'},
        [2, 5, 6, 7],
    ),
    'old class': ({'do_lower_case': False, 'tokenizer_class': 'BertTokenizerFast'}, [3, 9, 6, 7]),
}


@pytest.mark.parametrize('case', BERT_IDS)
def test_bert_normalizes_as_tokenizer_config_says(tmp_path, case):
    """transformers 5.23 ignores the normalizer of tokenizer.json in these classes."""
    tokenizer_config, expected = BERT_IDS[case]
    ours = open_directory(write_wordpiece(tmp_path / 'x', tokenizer_config))
    assert ours.encode_plain(['List Über 你好']) == [expected]
    restored = restore_tokenizer(ours.file[1], ours.settings)  # in a run
    assert restored.encode_plain(['List Über 你好']) == [expected]
    if case == 'as it is':
        assert ours.file[1] == (tmp_path / 'x' / 'tokenizer.json').read_bytes()


def test_vocab_txt_alone_is_read_for_bert(tmp_path):
    """princeton-nlp's SimCSE has no tokenizer.json. The ids are those of the lines."""
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'list', '##s', 'uber', 'Über']
    (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    text = 'Lists Über [MASK] new'
    assert open_directory(tmp_path).encode([text], 'x', 9)[0].tolist() == [2, 5, 6, 7, 4, 1, 3]
    (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
    assert open_directory(tmp_path).encode([text], 'x', 9)[0].tolist() == [2, 1, 8, 4, 1, 3]
    (tmp_path / 'config.json').write_text('{"model_type": "mpnet"}')
    with pytest.raises(UserError, match=r'vocab\.txt: is read for BERT, DistilBERT and NomicB'):
        open_directory(tmp_path)
    for name in ('config.json', 'tokenizer_config.json'):
        content = {'model_type': 'bert', 'tokenizer_class': 'BertJapaneseTokenizer'}
        (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
        (tmp_path / 'tokenizer_config.json').write_text('{}')
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(UserError, match=r'vocab\.txt: is read for BERT, DistilBERT and NomicB'):
            open_directory(tmp_path)


@pytest.mark.parametrize('where', ['tokenizer_config.json', 'tokenizer.json'])
def test_long_texts_can_lose_their_beginning(tmp_path, where):
    if where == 'tokenizer.json':
        folder = write_wordpiece(tmp_path / 'x', {}, direction='left')
    else:
        folder = write_wordpiece(tmp_path / 'x', {'truncation_side': 'left'})
    ours = open_directory(folder)
    restored = restore_tokenizer(ours.file[1], ours.settings)
    for tokenizer in (ours, restored):
        (ids,) = tokenizer.encode(['list list uber'], 'x', 4)
        assert ids.tolist() == [1, 2, 5, 10]
        assert tokenizer.describe()['truncation'] == 'beginning'
    other = open_directory(write_wordpiece(tmp_path / 'right', {'truncation_side': 'right'}))
    assert other.encode(['list uber list'], 'x', 3)[0].tolist() == [1, 2, 10]
    assert other.fingerprint != ours.fingerprint


MISTAKES = {
    'none': (
        lambda folder: (folder / 'vocab.json').unlink(),
        'holds no tokenizer.json, no vocab.json with merges.txt and no sentencepiece',
    ),
    'no merges': (lambda folder: (folder / 'merges.txt').unlink(), 'holds no tokenizer.json'),
    'another class': (
        lambda folder: write_json_files(
            folder, tokenizer_config={'tokenizer_class': 'WhisperTokenizerFast'}
        ),
        r'a WhisperTokenizer from vocab\.json and merges\.txt is not supported \(supported: '
        'GPT2Tokenizer, ',
    ),
    'roberta': (
        lambda folder: write_json_files(folder, config={'model_type': 'roberta'}),
        r'a RobertaTokenizer from vocab\.json and merges\.txt is not supported',
    ),
    'xlm-roberta': (
        lambda folder: [
            (folder / 'vocab.json').unlink(),
            write_sentencepiece(folder, config={'model_type': 'xlm-roberta'}),
        ],
        r'tokenizer\.model: XLM-RoBERTa gives other ids to the pieces of this sentencepiece model',
    ),
    't5': (
        lambda folder: [
            (folder / 'vocab.json').unlink(),
            write_sentencepiece(
                folder, config={}, tokenizer_config={'tokenizer_class': 'T5TokenizerFast'}
            ),
        ],
        r'tokenizer\.model: is read for LLaMA and Gemma, not for a T5Tokenizer; write a tokenizer',
    ),
    'gte': (
        lambda folder: [
            (folder / 'vocab.json').unlink(),
            write_sentencepiece(folder, config={'model_type': 'gte'}),
        ],
        r'tokenizer\.model: XLM-RoBERTa gives other ids to the pieces of this sentencepiece model',
    ),
    'damaged': (
        lambda folder: (folder / 'vocab.json').write_text('{'),
        r'vocab\.json: cannot be read',
    ),
    'damaged list': (
        lambda folder: (folder / 'added_tokens.json').write_text('{'),
        r'added_tokens\.json: not JSON',
    ),
    'two ids': (
        lambda folder: write_json_files(
            folder, tokenizer_config={'added_tokens_decoder': {'400': token('[x]')}}
        ),
        r'\[x\] has id 400 among the added tokens and id 330 in vocab\.json',
    ),
    'no sentencepiece model': (
        lambda folder: [
            (folder / 'vocab.json').unlink(),
            (folder / 'tokenizer.model').write_text('IQ== 0'),
        ],
        r'tokenizer\.model: cannot be read',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_invalid_directory_gives_a_one_line_error(tmp_path, mistake):
    folder = write_byte_level(tmp_path, ['<|endoftext|>'], config={'model_type': 'gpt2'})
    change, line = MISTAKES[mistake]
    change(folder)
    with pytest.raises(UserError, match=line) as error:
        open_directory(folder)
    assert '\n' not in str(error.value)


def test_threads_do_not_change_each_others_truncation():
    """The input pipeline encodes x and y, which have different limits, in several threads."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({'list': 0, 'file': 1}, 'list'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model = HuggingFaceJson(tokenizer.to_str().encode())
    texts = ['list file ' * 40] * 20

    def find_lengths(limit: int) -> set[int]:
        return {len(ids) for _ in range(50) for ids in model.encode(texts, limit)}

    limits = [3, 17, 29, 60] * 2
    with ThreadPoolExecutor(len(limits)) as pool:
        assert list(pool.map(find_lengths, limits)) == [{limit} for limit in limits]
