"""launch/export.py --check: each defect is reported with the readers that it breaks."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.exporting.check import check
from cpt_jax.runtime.errors import UserError
from tests.exporting.conftest import edit


def test_exports_have_no_defects(whole, make_export):
    directories = [whole[1], make_export(closing='own')[1] / 'document']
    for directory in directories:
        report = check(directory)
        assert report.defects == [] and len(report.checked_files) == 9, report.format_table()
        assert all(line.endswith('good') for line in report.format_table().splitlines()[1:])


def key(name: str, value: object):
    """Returns a change that sets a key of an object."""
    return lambda content: content.update({name: value})


def without(*names: str):
    """Returns a change that removes keys of an object."""
    return lambda content: {name: value for name, value in content.items() if name not in names}


def pooling(mode: str):
    """Returns a change that sets the pooling mode."""
    return lambda content: content.update(
        {
            name: name == f'pooling_mode_{mode}'
            for name in content
            if name.startswith('pooling_mode')
        }
    )


SHORT_POOLING = {'embedding_dimension': 32, 'pooling_mode': 'lasttoken', 'include_prompt': True}
NEW_NAME = 'sentence_transformers.sentence_transformer.modules.pooling.Pooling'
# Defect: (file, change of its content, pattern of the reported line, a reader that breaks).
DEFECTS = {
    'no closing token': (
        'tokenizer.json',
        key('post_processor', None),
        r'tokenizer\.json: post_processor: adds no closing token',
        'all',
    ),
    'length that is a text': (
        'sentence_bert_config.json',
        key('max_seq_length', '12'),
        r"sentence_bert_config\.json: max_seq_length: is '12', but must be an integer from 1",
        'all',
    ),
    'short pooling file': (
        '1_Pooling/config.json',
        lambda _: SHORT_POOLING,
        r'1_Pooling/config\.json: is in the short form',
        'TEI',
    ),
    'null prompt': (
        'config_sentence_transformers.json',
        key('prompts', {'query': None}),
        'query is null, but must be a string',
        'TEI',
    ),
    'left padding': (
        'tokenizer_config.json',
        key('padding_side', 'left'),
        'padding_side: is left, but gpt2 counts positions',
        'ST',
    ),
    'no maximum length': (
        'sentence_bert_config.json',
        without('max_seq_length'),
        'max_seq_length: is missing',
        'TEI',
    ),
    'mean pooling': (
        '1_Pooling/config.json',
        pooling('mean_tokens'),
        'is mean, but texts get a closing .* meant for lasttoken',
        'all',
    ),
    'cls pooling': (
        '1_Pooling/config.json',
        pooling('cls_token'),
        'is cls, but texts get a closing token',
        'all',
    ),
    'no pooling': (
        '1_Pooling/config.json',
        pooling('none'),
        'exactly one pooling_mode_... must be true',
        'vLLM',
    ),
    'wrong dimension': (
        '1_Pooling/config.json',
        key('word_embedding_dimension', 64),
        'is 64, but hidden states have 32 dimensions',
        'ST',
    ),
    'maximum length above the positions': (
        'sentence_bert_config.json',
        key('max_seq_length', 512),
        'is 512, but there are 40 positions',
        'TEI',
    ),
    'unknown default prompt': (
        'config_sentence_transformers.json',
        key('default_prompt_name', 'text'),
        "is 'text', but the prompts are",
        'ST',
    ),
    'requirements': (
        'config_sentence_transformers.json',
        key('requirements', {'x': '1'}),
        'requirements: makes loading fail',
        'ST >= 6',
    ),
    'module name of version 5.4': (
        'modules.json',
        lambda content: content[1].update(type=NEW_NAME),
        'is a name that only version 5.4 and later know',
        'ST < 5.4',
    ),
    'remote code': (
        'modules.json',
        lambda content: content[1].update(type='mine.X'),
        "'mine.X' needs trust_remote_code",
        'ST >= 6',
    ),
    'wrong closing token': (
        'tokenizer_config.json',
        key('eos_token', '<|query|>'),
        r"is '<\|query\|>', but texts end in '<\|end\|>'",
        'vLLM',
    ),
    'left truncation': (
        'tokenizer_config.json',
        key('truncation_side', 'left'),
        r'golden\.json: its vectors differ from those of the model by',
        'all',
    ),
    'too few rows': (
        'config.json',
        key('vocab_size', 300),
        'ids, but the token embedding has 300 rows',
        'all',
    ),
    'contradictory attention keys': (
        'config.json',
        key('is_causal', False),
        'is_causal: is False, and so is use_bidirectional_attention',
        'transformers',
    ),
    'two dtypes': (
        'config.json',
        key('torch_dtype', 'float16'),
        "dtype: differs from torch_dtype: .*'float16', 'float32'",
        'transformers 4',
    ),
    'no positions': (
        'config.json',
        without('n_positions', 'max_position_embeddings'),
        'max_position_embeddings: is missing',
        'TEI',
    ),
    'no model type': ('config.json', without('model_type'), 'model_type: is missing', 'all'),
}


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / 'copy'))


@pytest.mark.parametrize('name', DEFECTS)
def test_each_defect_is_reported_with_its_readers(copy, name):
    file, change, line, reader = DEFECTS[name]
    edit(copy / file, change)
    report = check(copy)
    table = report.format_table()
    assert re.search(line, '\n'.join(table.splitlines()[len(report.checked_files) + 1 :]))
    assert any(reader in defect.readers for defect in report.defects)
    assert ' wrong' in table


def test_left_truncation_is_a_defect_with_prompts_where_no_golden_tells(copy):
    """A run keeps the side that its origin had."""
    edit(copy / 'tokenizer_config.json', key('truncation_side', 'left'))
    assert [defect.where for defect in check(copy).defects] == ['golden.json']
    (copy / 'golden.json').unlink()
    assert any('truncation_side' in defect.where for defect in check(copy).defects)
    edit(copy / 'config_sentence_transformers.json', key('prompts', {}))
    assert not any('truncation_side' in defect.where for defect in check(copy).defects)


def test_changed_weights_and_missing_files_are_reported(copy):
    tensors = load_file(copy / 'model.safetensors')
    changed = tensors | {'wte.weight': np.ascontiguousarray(tensors['wte.weight'][:, ::-1])}
    save_file(changed, copy / 'model.safetensors', metadata={'format': 'pt'})
    (defect,) = check(copy).defects
    assert defect.where == 'golden.json'
    assert 'its vectors differ from those of the model by' in defect.what
    save_file(tensors, copy / 'model.safetensors')
    assert ['format' in defect.what for defect in check(copy).defects] == [True]
    lacking = {name: array for name, array in tensors.items() if name != 'h.1.ln_2.bias'}
    save_file(lacking, copy / 'model.safetensors', metadata={'format': 'pt'})
    assert any(
        re.search(r'missing 1: .*h\.1\.ln_2\.bias', defect.what) for defect in check(copy).defects
    )
    whole = (copy / 'model.safetensors').read_bytes()
    (copy / 'model.safetensors').write_bytes(whole[:1000])
    assert any('damaged or cut short' in defect.what for defect in check(copy).defects)
    (copy / 'modules.json').write_text('[')
    assert any(
        defect.where == 'modules.json' and 'not JSON' in defect.what
        for defect in check(copy).defects
    )
    (copy / 'modules.json').write_text('{"a": 1}')
    assert any(
        defect.where == 'modules.json' and 'is not a list of modules' in defect.what
        for defect in check(copy).defects
    )
    (copy / 'tokenizer.json').unlink()
    assert any(
        defect.where == 'tokenizer.json' and defect.what == 'is missing'
        for defect in check(copy).defects
    )
    shutil.rmtree(copy / '1_Pooling')
    (copy / 'config.json').unlink()
    with pytest.raises(UserError, match='has no config.json: give the directory of a model'):
        check(copy)


def test_positions_of_nomic_bert_are_the_larger_of_two_keys(tmp_path):
    """transformers adds `max_position_embeddings` with its default to a published config.json."""
    config = {'model_type': 'nomic_bert', 'n_positions': 64, 'max_position_embeddings': 32}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'modules.json').write_text('[]')
    for longest, is_wrong in ((64, False), (65, True)):
        lengths = {'max_seq_length': longest}
        (tmp_path / 'sentence_bert_config.json').write_text(json.dumps(lengths))
        found = [defect.what for defect in check(tmp_path).defects]
        assert ('is 65, but there are 64 positions' in found) == is_wrong
        assert not any('32 positions' in what for what in found)
