"""launch/export.py --check: what would break where."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.exporting.check import check
from cpt_jax.runtime.errors import UserError
from tests.exporting.conftest import edit


def test_what_we_write_is_good(whole, make_export):
    directories = [whole[1], make_export(closing='own')[1] / 'document']
    for directory in directories:
        report = check(directory)
        assert report.defects == [] and len(report.looked_at) == 9, report.table()
        assert all(line.endswith('good') for line in report.table().splitlines()[1:])


def key(name: str, value: object):
    """Sets a key of an object."""
    return lambda content: content.update({name: value})


def without(*names: str):
    return lambda content: {name: value for name, value in content.items() if name not in names}


def pooling(mode: str):
    return lambda content: content.update(
        {
            name: name == f'pooling_mode_{mode}'
            for name in content
            if name.startswith('pooling_mode')
        }
    )


SHORT_POOLING = {'embedding_dimension': 32, 'pooling_mode': 'lasttoken', 'include_prompt': True}
NEW_NAME = 'sentence_transformers.sentence_transformer.modules.pooling.Pooling'
# (file, what happens to its content, where and what the check says, for whom it breaks)
DEFECTS = {
    'no closing token': ('tokenizer.json', key('post_processor', None), r'tokenizer\.json: '
                                                                        r'post_processor: adds no '
                                                                        r'closing token', 'all'),
    'short pooling file': ('1_Pooling/config.json', lambda _: SHORT_POOLING, r'1_Pooling/config\.json: is in the short form', 'TEI'),
    'null prompt': ('config_sentence_transformers.json', key('prompts', {'query': None}), 'query is null, and must be a string', 'TEI'),
    'left padding': ('tokenizer_config.json', key('padding_side', 'left'), "padding_side: is "
                                                                           "left, and gpt2 counts "
                                                                           "positions", 'ST'),
    'no maximum': ('sentence_bert_config.json', without('max_seq_length'), 'max_seq_length: is '
                                                                           'missing', 'TEI'),
    'mean pooling': ('1_Pooling/config.json', pooling('mean_tokens'), 'is mean, and texts get a '
                                                                      'closing .*: lasttoken is '
                                                                      'meant', 'all'),
    'cls pooling': ('1_Pooling/config.json', pooling('cls_token'), 'is cls, and texts get a '
                                                                   'closing token', 'all'),
    'no pooling': ('1_Pooling/config.json', pooling('none'), 'exactly one pooling_mode_... must '
                                                             'be true', 'vLLM'),
    'another width': ('1_Pooling/config.json', key('word_embedding_dimension', 64), 'is 64, and the states have 32 units', 'ST'),
    'too long': ('sentence_bert_config.json', key('max_seq_length', 512), 'is 512, and there are '
                                                                          '40 positions', 'TEI'),
    'another default': ('config_sentence_transformers.json', key('default_prompt_name', 'text'), "is 'text', and prompts have", 'ST'),
    'requirements': ('config_sentence_transformers.json', key('requirements', {'x': '1'}), 'requirements: makes loading fail', 'ST >= 6'),
    'a new name': ('modules.json', lambda content: content[1].update(type=NEW_NAME), 'is a name of version 5.4', 'ST < 5.4'),
    'remote code': ('modules.json', lambda content: content[1].update(type='mine.X'), "'mine.X' needs trust_remote_code", 'ST >= 6'),
    'another token': ('tokenizer_config.json', key('eos_token', '<|query|>'), r"is '<\|query\|>', "
                                                                              r"and texts end in "
                                                                              r"'<\|end\|>'", 'vLLM'),
    'cut at the left': ('tokenizer_config.json', key('truncation_side', 'left'), 'truncation_side: is left', 'ST'),
    'too few rows': ('config.json', key('vocab_size', 300), 'ids, and the embedding 300 rows', 'all'),
    'two opinions': ('config.json', key('is_causal', False), 'is_causal: is False, and '
                                                             'use_bidirectional_attention too', 'transformers'),
    'two dtypes': ('config.json', key('torch_dtype', 'float16'), "dtype: is not torch_dtype: "
                                                                 ".*'float16', 'float32'",
                                                                 'transformers 4'),
    'no positions': ('config.json', without('n_positions', 'max_position_embeddings'), 'max_position_embeddings: is missing', 'TEI'),
    'no kind': ('config.json', without('model_type'), 'model_type: is missing', 'all'),
}  # fmt: skip


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / 'copy'))


@pytest.mark.parametrize('name', DEFECTS)
def test_each_defect_is_found_and_says_for_whom_it_is_one(copy, name):
    file, change, line, reader = DEFECTS[name]
    edit(copy / file, change)
    report = check(copy)
    assert re.search(line, '\n'.join(report.table().splitlines()[len(report.looked_at) + 1 :]))
    assert any(reader in defect.readers for defect in report.defects) and ' wrong' in report.table()


def test_weights_and_files_that_are_not_those_of_the_export(copy):
    tensors = load_file(copy / 'model.safetensors')
    changed = tensors | {'wte.weight': np.ascontiguousarray(tensors['wte.weight'][:, ::-1])}
    save_file(changed, copy / 'model.safetensors', metadata={'format': 'pt'})
    (defect,) = check(copy).defects
    assert defect.where == 'golden.json' and 'the vectors differ from those in it by' in defect.what
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
        defect.where == 'modules.json' and 'is no list of modules' in defect.what
        for defect in check(copy).defects
    )
    (copy / 'tokenizer.json').unlink()
    assert any(
        defect.where == 'tokenizer.json' and defect.what == 'is missing'
        for defect in check(copy).defects
    )
    shutil.rmtree(copy / '1_Pooling')
    (copy / 'config.json').unlink()
    with pytest.raises(UserError, match='no config.json there; give the directory of a model'):
        check(copy)
