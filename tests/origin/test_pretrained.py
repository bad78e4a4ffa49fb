"""Directories of pretrained models, compared with golden vectors of sentence-transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.embed.load import load_embedder
from cpt_jax.origin.pretrained import (
    is_pretrained,
    list_model_directories,
    open_pretrained,
    read_planned_model,
)
from cpt_jax.runtime.errors import UserError
from tests.conftest import sentences
from tests.embed.test_embedder import write_run
from tests.goldens.golden import Golden, read_golden, restore
from tests.programs import run_program

TEXTS = [
    *sentences(40, words=30),
    '',
    ' ',
    'list ' * 300,
    '[CLS] { } <pad> file',
    'Ünïcödé \U0001f389',
    'Upper Case',
    'x' * 500,
]


TEXT = 'list file parser'
PROMPTS = {'query': 'find: ', 'document': 'file list '}


@pytest.fixture(scope='module')
def golden() -> Golden:
    """Returns directories of sentence-transformers and transformers, and their outputs."""
    return read_golden('pretrained')


@pytest.fixture(scope='module')
def whole(golden, tmp_path_factory) -> Path:
    return restore(golden.facts['whole']['bert mean'], tmp_path_factory.mktemp('bert') / 'whole')


@pytest.fixture(scope='module')
def plain(golden, tmp_path_factory) -> Path:
    return restore(golden.facts['plain']['bert'], tmp_path_factory.mktemp('plain'))


def write_legacy(folder: Path, flag: str) -> None:
    """Rewrites two files in the format of sentence-transformers before version 5.4."""
    flags = [
        'cls_token',
        'mean_tokens',
        'max_tokens',
        'mean_sqrt_len_tokens',
        'weightedmean_tokens',
        'lasttoken',
    ]
    pooling = {'word_embedding_dimension': 24} | {
        f'pooling_mode_{name}': name == flag for name in flags
    }
    (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
    (folder / 'sentence_bert_config.json').write_text(
        json.dumps({'max_seq_length': 30, 'do_lower_case': False})
    )


@pytest.mark.parametrize(
    ('name', 'max_tokens'), [('bert mean', 30), ('roberta cls', 30), ('qwen3 lasttoken', 40)]
)
def test_vectors_are_those_of_sentence_transformers(golden, tmp_path, name, max_tokens):
    """The directories of BERT and RoBERTa have the format of versions before 5.4."""
    folder = restore(golden.facts['whole'][name], tmp_path / 'whole')
    embed = load_embedder(str(folder))
    assert open_pretrained(str(folder)).max_tokens == max_tokens
    assert golden.facts['max_seq_length'][name] == max_tokens
    for side in 'xy':
        ours = embed(TEXTS, side)
        np.testing.assert_allclose(ours, golden.arrays[f'{name}/{side}'], atol=1e-5)
        np.testing.assert_allclose(embed(TEXTS[-3:-2], side), ours[-3:-2], atol=1e-5)
    # The prompts differ between the sides, and so must the vectors.
    assert np.abs(embed(TEXTS, 'x') - embed(TEXTS, 'y')).max(1).min() > 1e-3
    assert embed.settings['prompts'] == {'x': PROMPTS['query'], 'y': PROMPTS['document']}
    assert embed.model_name == 'whole'


@pytest.mark.parametrize(
    ('own', 'of_tokenizer', 'expected'),
    [(30, 20, 30), (20, 30, 20), (None, 20, 20), (999, 20, 0), (None, 1e30, 0), (None, None, 0)],
)
def test_limit_of_sentence_transformers_replaces_that_of_the_tokenizer(
    whole, tmp_path, caplog, own, of_tokenizer, expected
):
    """As in sentence-transformers 6.2. An expected 0 is the number of positions."""
    folder = shutil.copytree(whole, tmp_path / 'whole')
    (folder / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': own}))
    path = folder / 'tokenizer_config.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {'model_max_length': of_tokenizer}))
    found = open_pretrained(str(folder))
    assert found.max_tokens == (expected or found.shape['max_length'])
    assert ('and not to max_seq_length=999' in caplog.text) == (own == 999)


@pytest.mark.parametrize('form', ['old', 'new'])
@pytest.mark.parametrize(('max_seq_length', 'expected'), [(8192, 8192), (None, 2048)])
def test_length_of_nomic_bert_is_that_of_sentence_transformers(
    tmp_path, caplog, form, max_seq_length, expected
):
    """`Transformer.__init__` of version 6.2 takes `max_position_embeddings` of NomicBertConfig, by
    default 2048, only without `max_seq_length`.
    """
    config = read_golden('families').facts['configs']['nomic-embed-text-v1'][form]
    (tmp_path / 'config.json').write_text(json.dumps(config))
    lengths = {'max_seq_length': max_seq_length}
    (tmp_path / 'sentence_bert_config.json').write_text(json.dumps(lengths))
    found = read_planned_model(str(tmp_path))
    assert found and found.max_tokens == expected
    assert not caplog.text


@pytest.mark.parametrize(
    ('kind', 'default', 'poolings'),
    [('bert', 'mean', ('last', 'cls')), ('qwen3', 'eos', ('eos', 'mean'))],
)
def test_plain_directory_uses_the_given_pooling_or_that_of_its_family(
    golden, tmp_path, kind, default, poolings
):
    folder = restore(golden.facts['plain'][kind], tmp_path)
    found = open_pretrained(str(folder))
    assert found.shape['pooling'] == default and found.tokenizer.prompts == {'x': '', 'y': ''}
    h_SxD = golden.arrays[f'states/{kind}']
    pooled = {'last': h_SxD[-1], 'eos': h_SxD[-1], 'mean': h_SxD.mean(0), 'cls': h_SxD[0]}
    for pooling in (None, *poolings):
        embed = load_embedder(str(folder), **({'pooling': pooling} if pooling else {}))
        expected = pooled[pooling or default]
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(embed([TEXT], 'x')[0], expected, atol=1e-5)
        assert ('mean of' in embed.settings['pooling']) == ((pooling or default) == 'mean')
        assert ('first token' in embed.settings['pooling']) == (pooling == 'cls')


def test_pooling_flag_is_an_error_if_the_model_configures_it(whole, plain, tmp_path, tokenizer):
    with pytest.raises(
        UserError,
        match=r'--pooling mean: .*whole/modules\.json configures the pooling of this model: '
        r'omit the flag',
    ):
        load_embedder(str(whole), pooling='mean')
    with pytest.raises(UserError, match='--pooling max: choose one of eos, last, cls, mean'):
        load_embedder(str(plain), pooling='max')
    run = write_run(tmp_path / 'mine', tokenizer)
    with pytest.raises(
        UserError,
        match='--pooling mean: .*mine is a run, which has its own pooling; remove --pooling',
    ):
        load_embedder(str(run), pooling='mean')


@pytest.mark.parametrize('program', ['evaluate', 'embed'])
def test_programs_have_a_pooling_flag_and_store_it_in_the_settings(plain, tmp_path, program):
    (tmp_path / 'texts.txt').write_text('list file\nparser\n')
    how = {
        'embed': ['--input=texts.txt'],
        'evaluate': ['--tasks=codesearch/x', '--data_dir=.', '--candidates=4'],
    }
    rows = [
        {'docstring': text, 'code': f'def {text.replace(" ", "_")}()'}
        for text in dict.fromkeys(sentences(8))
    ]
    (tmp_path / 'codesearch').mkdir()
    (tmp_path / 'codesearch' / 'x.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows)
    )
    model = [f'--model={plain}', '--pooling=cls', '--output=out']
    status, _, errors = run_program(program, *model, *how[program], cwd=tmp_path)
    assert status == 0, errors
    written = json.loads(
        (tmp_path / 'out' / {'embed': 'meta.json', 'evaluate': 'results.json'}[program]).read_text()
    )
    assert written['settings']['pooling'] == 'state at the first token, after the final norm'


def test_unknown_model_type_and_a_run_are_not_pretrained_models(tmp_path, monkeypatch):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='model_type=None is not supported'):
        open_pretrained(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert is_pretrained('.') and not is_pretrained('') and not is_pretrained('runs/mine@3')
    (tmp_path / 'data.json').write_text('{}')  # a run
    assert not is_pretrained('.')


def test_directories_of_an_adapter_include_its_base(tmp_path):
    for folder in ('adapter', 'base'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'base/config.json').write_text('{}')
    content = {
        'peft_type': 'LORA',
        'base_model_name_or_path': str(tmp_path / 'base'),
        'lora_alpha': 8,
    }
    (tmp_path / 'adapter/adapter_config.json').write_text(json.dumps(content))
    assert list_model_directories(str(tmp_path / 'base')) == [tmp_path / 'base']
    assert list_model_directories(str(tmp_path / 'adapter')) == [
        tmp_path / 'adapter',
        tmp_path / 'base',
    ]


def edit(path: Path, change) -> None:
    """Applies a function to the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MISTAKES = {
    'no tokenizer': (
        lambda folder: (folder / 'tokenizer.json').unlink(),
        'holds no tokenizer.json',
    ),
    'no pooling file': (
        lambda folder: shutil.rmtree(folder / '1_Pooling'),
        r'1_Pooling/config\.json: is missing',
    ),
    'a dense layer': (
        lambda folder: edit(
            folder / 'modules.json',
            lambda modules: modules.append({'type': 'x.Dense', 'path': '3'}),
        ),
        r'modules\.json: expected a transformer, a pooling and a normalisation, not '
        r'Transformer, Pooling, Normalize, Dense',
    ),
    'another pooling': (
        lambda folder: write_legacy(folder, 'max_tokens'),
        r"pooling \['max'\] is not supported; supported is one of lasttoken, cls, mean",
    ),
    'no JSON': (lambda folder: (folder / 'config.json').write_text('{'), r'config\.json: not JSON'),
    'too many ids': (
        lambda folder: edit(folder / 'config.json', lambda config: config.update(vocab_size=20)),
        'vocab_size=20, but .*word_embeddings.weight has 78 rows: the files belong to different',
    ),
    'a config that is a list': (
        lambda folder: (folder / 'config.json').write_text('[]'),
        r'config\.json: not a JSON object',
    ),
    'no number of ids': (
        lambda folder: edit(folder / 'config.json', lambda config: config.pop('vocab_size')),
        r"config\.json: has no 'vocab_size'",
    ),
    'a module without a type': (
        lambda folder: (folder / 'modules.json').write_text('[{"path": ""}]'),
        r'modules\.json: not a list of modules, each with a type and a path',
    ),
    **{
        f'{name}: {key}={value!r}': (
            lambda folder, name=name, key=key, value=value: edit(
                folder / name, lambda content: content.update({key: value})
            ),
            rf'{name}: .*{line}',
        )
        for name, key, value, line in [
            (
                'config.json',
                'num_hidden_layers',
                '12',
                "num_hidden_layers='12': must be an integer",
            ),
            ('config.json', 'num_hidden_layers', 10**9, 'must be an integer from 1 to 10,000'),
            ('config.json', 'type_vocab_size', 0, 'type_vocab_size=0: must be an integer'),
            ('config.json', 'layer_norm_eps', None, 'layer_norm_eps=None: must be a number'),
            ('config.json', 'num_attention_heads', 5, 'model.heads=5 does not divide'),
            ('config.json', 'vocab_size', 10**7, r'vocab_size=10,000,000, but .* rows: the files'),
            ('config.json', 'hidden_act', [], r'hidden_act=\[\] is not supported'),
            ('config_sentence_transformers.json', 'prompts', ['a'], 'prompts=.*must be an object'),
            ('config_sentence_transformers.json', 'default_prompt_name', {}, 'must be a text'),
            ('tokenizer_config.json', 'model_max_length', 'x', 'must be a number from 1, or null'),
            ('tokenizer_config.json', 'pad_token', {'a': 1}, 'an object with the key content'),
        ]
    },
    **{
        f'{name} is {text}': (
            lambda folder, name=name, text=text: (folder / name).write_text(text),
            f'{name}: not ',
        )
        for name in ('config.json', 'modules.json', 'tokenizer_config.json')
        for text in ('3', '"x"', '[' * 9999, '\xff', 'null')
    },
    'a pooling that is a list': (
        lambda folder: (folder / '1_Pooling/config.json').write_text('{"pooling_mode": ["mean"]}'),
        r"1_Pooling/config.json: pooling \[\['mean'\]\] is not supported",
    ),
    'a directory in the place of a file': (
        lambda folder: ((folder / 'config.json').unlink(), (folder / 'config.json').mkdir()),
        'no run with a checkpoint',
    ),
    'half a config': (
        lambda folder: (folder / 'config.json').write_text(
            '{"model_type": "bert", "hidden_size": 24}'
        ),
        r"config\.json: has no 'num_hidden_layers'",
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_error_names_the_unusable_file(whole, tmp_path, mistake):
    change, line = MISTAKES[mistake]
    shutil.copytree(whole, tmp_path / 'copy')
    change(tmp_path / 'copy')
    with pytest.raises(UserError, match=line):
        load_embedder(str(tmp_path / 'copy'))
