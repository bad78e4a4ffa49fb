"""Directories as sentence-transformers, transformers and PEFT write them, in all their layouts.

Expected vectors are pooled states of transformers (stored in the golden `pretrained`) or those of
a directory with the same content in another layout.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.origin.pretrained import is_pretrained, open_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import Representation
from tests.goldens.golden import Golden, read_golden, restore
from tests.model.formats.torch_inputs import write_torch_file
from tests.origin.test_pretrained import edit

TEXT = 'list file parser'  # the text of the states in the golden


@pytest.fixture(scope='module')
def golden() -> Golden:
    return read_golden('pretrained')


@pytest.fixture
def plain(golden, tmp_path) -> Callable[[str], Path]:
    """Returns a function that writes a plain directory of a family."""

    def write(kind: str) -> Path:
        return restore(golden.facts['plain'][kind], tmp_path / kind)

    return write


def write_sentence_files(
    folder: Path, mode: str = 'mean', kinds: tuple[str, ...] = ('Normalize',), **config
) -> None:
    """Writes modules.json, the pooling and config_sentence_transformers.json into a directory.

    Args:
      folder: directory to write into.
      mode: pooling mode.
      kinds: modules after the pooling.
      config: keys of config_sentence_transformers.json, and include_prompt and max_seq_length of
        the other files.
    """
    modules = [('Transformer', ''), ('Pooling', '1_Pooling'), *((kind, kind) for kind in kinds)]
    (folder / 'modules.json').write_text(
        json.dumps([{'type': f'x.{kind}', 'path': path} for kind, path in modules])
    )
    (folder / '1_Pooling').mkdir()
    pooling = {'pooling_mode': mode, 'include_prompt': config.pop('include_prompt', True)}
    (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
    length = {'max_seq_length': config.pop('max_seq_length', None)}
    (folder / 'sentence_bert_config.json').write_text(json.dumps(length))
    (folder / 'config_sentence_transformers.json').write_text(json.dumps(config))


def to_unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize('mode', ['mean', 'cls'])
def test_prompt_can_be_left_out_of_the_pooling(golden, plain, mode):
    folder = plain('bert')
    prompts = {'query': 'list ', 'document': ''}
    write_sentence_files(folder, mode, prompts=prompts, include_prompt=False)
    embed = load_embedder(str(folder))
    h_SxD = golden.arrays['states/bert']
    tokenizer = open_pretrained(str(folder)).tokenizer
    first = 1 + len(tokenizer.encode_plain(['list '])[0])  # [CLS] and the prompt
    assert tokenizer.count_prompt_ids('x') == first and tokenizer.count_prompt_ids('y') == 0
    pooled = {'mean': h_SxD[first:].mean(0), 'cls': h_SxD[first]}
    rest = TEXT.removeprefix('list ')
    np.testing.assert_allclose(embed([rest], 'x')[0], to_unit(pooled[mode]), atol=1e-5)
    whole = {'mean': h_SxD.mean(0), 'cls': h_SxD[0]}
    np.testing.assert_allclose(embed([TEXT], 'y')[0], to_unit(whole[mode]), atol=1e-5)
    assert f'without the first {first} tokens of x and 0 of y' in '\n'.join(embed.summary)


def test_dot_product_leaves_vectors_as_they_are(golden, plain):
    folder = plain('bert')
    write_sentence_files(folder, kinds=('Dropout',), similarity_fn_name='dot')
    mean_D = golden.arrays['states/bert'].mean(0)
    embed = load_embedder(str(folder))
    np.testing.assert_allclose(embed([TEXT], 'x')[0], mean_D, rtol=1e-4, atol=1e-5)
    assert embed.settings['similarity'] == 'dot'
    cosine = load_embedder(str(folder), similarity='cosine')
    np.testing.assert_allclose(cosine([TEXT], 'x')[0], to_unit(mean_D), atol=1e-5)
    assert 'similarity' not in cosine.settings  # as in results of earlier versions
    edit(
        folder / 'config_sentence_transformers.json',
        lambda config: config.update(similarity_fn_name='euclidean'),
    )
    with pytest.raises(UserError, match="name='euclidean' is not .*: choose --similarity cosine"):
        open_pretrained(str(folder))


def test_pooler_is_a_layer_and_tanh_over_the_first_state(golden, plain):
    folder = plain('bert')
    tensors = load_file(folder / 'model.safetensors')
    rng = np.random.default_rng(0)
    width = tensors['pooler.dense.bias'].shape[0]
    tensors['pooler.dense.bias'] = rng.normal(size=width).astype(np.float32)
    save_file(tensors, folder / 'model.safetensors')
    embed = load_embedder(str(folder), pooling='pooler')
    first_D = golden.arrays['states/bert'][0]
    expected = np.tanh(tensors['pooler.dense.weight'] @ first_D + tensors['pooler.dense.bias'])
    np.testing.assert_allclose(embed([TEXT], 'x')[0], to_unit(expected), atol=1e-5)
    assert not any('passed over' in line for line in embed.summary)
    found = open_pretrained(str(folder))
    assert found.passed_over == ['pooler.dense.bias', 'pooler.dense.weight']
    with pytest.raises(
        UserError, match=r'--pooling pooler: .* has no tensor pooler\.dense\.weight'
    ):
        open_pretrained(str(plain('qwen3')), 'pooler')


def test_modules_that_change_no_unit_vector_are_accepted(plain):
    for folder, mode, kinds, pooling in [
        (plain('bert'), 'mean_sqrt_len_tokens', ('Dropout', 'Normalize'), 'mean'),
        (plain('qwen3'), 'lasttoken', ('Dropout',), 'eos'),
    ]:
        write_sentence_files(folder, mode, kinds)
        for similarity in ('auto', 'dot'):
            assert open_pretrained(str(folder), '', similarity).shape['pooling'] == pooling
    write_name = {'similarity_fn_name': 'dot'}
    (folder / 'config_sentence_transformers.json').write_text(json.dumps(write_name))
    (folder / '1_Pooling' / 'config.json').write_text('{"pooling_mode": "mean_sqrt_len_tokens"}')
    message = 'pooling mean_sqrt_len_tokens is not supported with dot products'
    with pytest.raises(UserError, match=message):
        open_pretrained(str(folder))
    assert open_pretrained(str(folder), similarity='cosine').shape['pooling'] == 'mean'
    (folder / 'config_sentence_transformers.json').write_text('{}')
    assert open_pretrained(str(folder)).shape['pooling'] == 'mean'
    with pytest.raises(UserError, match=message):
        open_pretrained(str(folder), similarity='dot')


def test_lengths_and_old_layouts(plain, tmp_path):
    """sentence-transformers replaces the tokenizer's limit by its own, and once put the transformer
    into a folder.
    """
    folder = plain('bert')
    write_sentence_files(folder, max_seq_length=12)
    edit(folder / 'tokenizer_config.json', lambda config: config.update(model_max_length=8))
    assert open_pretrained(str(folder)).max_tokens == 12
    (folder / 'sentence_bert_config.json').rename(folder / 'sentence_distilbert_config.json')
    assert open_pretrained(str(folder)).max_tokens == 12
    expected = load_embedder(str(folder))([TEXT], 'x')
    inner = folder / '0_Transformer'
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name != 'modules.json':
            path.rename(inner / path.name)
    edit(folder / 'modules.json', lambda modules: modules[0].update(path='0_Transformer'))
    assert is_pretrained(str(folder)) and open_pretrained(str(folder)).max_tokens == 12
    np.testing.assert_array_equal(load_embedder(str(folder))([TEXT], 'x'), expected)
    (folder / 'sentence_distilbert_config.json').unlink(missing_ok=True)
    (inner / 'sentence_distilbert_config.json').unlink()
    assert open_pretrained(str(folder)).max_tokens == 8


def test_each_side_can_have_its_own_length(plain):
    folder = plain('bert')
    write_sentence_files(folder, max_seq_length=12)
    path = folder / 'sentence_bert_config.json'
    edit(path, lambda config: config.update(query_length=5, document_length=None))
    assert open_pretrained(str(folder)).limits == {'x': 5, 'y': 12}
    edit(path, lambda config: config.update(document_length=10**6))
    model = open_pretrained(str(folder))
    assert model.limits == {'x': 5, 'y': model.shape['max_length']}
    for key, value in {
        'processing_kwargs': {'text': {'max_length': 8}},
        'tokenizer_args': {'model_max_length': 8},
        'config_kwargs': {'is_causal': False},
    }.items():
        edit(path, lambda config, new={key: value}: config.update(new))
        with pytest.raises(UserError, match=f'config.json: {key} is not supported') as error:
            open_pretrained(str(folder))
        assert '\n' not in str(error.value)
        edit(path, lambda config, key=key: config.update({key: {'trust_remote_code': True}}))
    assert open_pretrained(str(folder)).limits == model.limits


@pytest.mark.parametrize('format', ['safetensors', 'bin'])
def test_adapter_of_sentence_transformers_goes_before_its_base(plain, tmp_path, format):
    """Its pooling, prompts, length and tokenizer replace those of the base."""
    base = plain('qwen3')
    same = shutil.copytree(base, tmp_path / 'same')
    write_sentence_files(base, 'lasttoken', prompts={'query': 'old: '}, max_seq_length=9)
    adapter = tmp_path / 'adapter'
    adapter.mkdir()
    tokenizer = tokenizers.Tokenizer.from_file(str(base / 'tokenizer.json'))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='$A file', special_tokens=[('file', tokenizer.encode('file').ids[0])]
    )
    for folder in (adapter, same):
        prompts = {'query': 'find: ', 'document': 'list '}
        write_sentence_files(folder, 'mean', prompts=prompts, max_seq_length=11)
        tokenizer.save(str(folder / 'tokenizer.json'))
    shutil.copy(base / 'tokenizer_config.json', adapter)
    content = {'peft_type': 'LORA', 'base_model_name_or_path': str(base), 'r': 1, 'lora_alpha': 1}
    (adapter / 'adapter_config.json').write_text(json.dumps(content))
    weight = load_file(base / 'model.safetensors')['layers.0.self_attn.q_proj.weight']
    module = 'base_model.model.layers.0.self_attn.q_proj'
    tensors = {
        f'{module}.lora_A.weight': np.ones((1, weight.shape[1]), np.float32),
        f'{module}.lora_B.weight': np.zeros((weight.shape[0], 1), np.float32),
    }
    if format == 'bin':
        write_torch_file(adapter / 'adapter_model.bin', tensors)
    else:
        save_file(tensors, adapter / 'adapter_model.safetensors')
    with pytest.raises(UserError, match=r'--pooling last: .*adapter/modules\.json configures'):
        open_pretrained(str(adapter), 'last')
    embed, expected = load_embedder(str(adapter)), load_embedder(str(same))
    assert embed.settings == expected.settings
    assert embed.settings['max_tokens_x'] == 11
    if format == 'safetensors':  # the other format differs in the reader only
        for side in 'xy':
            np.testing.assert_array_equal(embed([TEXT], side), expected([TEXT], side))


def test_ids_beyond_the_table_are_refused_in_the_text_that_has_one(plain):
    folder = plain('bert')
    path = folder / 'tokenizer.json'
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_tokens(['<extra>'])
    tokenizer.save(str(path))
    rows = json.loads((folder / 'config.json').read_text())['vocab_size']
    found = open_pretrained(str(folder)).tokenizer
    assert found.vocab_size == rows + 1 and found.settings['rows'] == rows
    found.encode([TEXT], 'x', 16)
    line = f"gives the text 'a <extra>' the id {rows} \\('<extra>'\\), .* has {rows} rows"
    with pytest.raises(UserError, match=line):
        found.encode([TEXT, 'a <extra>'], 'x', 16)
    with pytest.raises(UserError, match=line):
        found.encode_plain(['a <extra>'])


def test_begin_token_is_the_tokenizers_own_or_always_the_models(plain):
    """The tokenizer of SmolLM2 adds no token, although config.json has a BOS."""
    folder = plain('qwen3')
    edit(folder / 'config.json', lambda config: config.update(bos_token_id=7))
    edit(folder / 'tokenizer_config.json', lambda config: config.pop('bos_token', None))
    last = Representation('last')
    for options, begin in [
        ({}, []),
        ({'begin_token': 'tokenizer'}, []),
        ({'begin_token': 'always'}, [7]),
    ]:
        embed = load_embedder(str(folder), representation=last, **options)
        assert embed.settings['begin'] == begin
    with pytest.raises(UserError, match='--begin_token always: only for texts in a template'):
        load_embedder(str(folder), begin_token='always')
    with pytest.raises(UserError, match="--begin_token='allways': choose one of auto, tokenizer"):
        load_embedder(str(folder), representation=last, begin_token='allways')
    edit(folder / 'tokenizer_config.json', lambda config: config.update(add_bos_token=False))
    with pytest.raises(UserError, match="begin_token='always': tokenizer.json puts .* has no BOS"):
        load_embedder(str(folder), representation=last, begin_token='always')


def test_missing_end_token_is_a_warning(plain):
    folder = plain('qwen3')
    edit(folder / 'tokenizer_config.json', lambda config: config.update(add_eos_token=True))
    assert not open_pretrained(str(folder)).find_warnings()  # the post-processor adds one
    edit(folder / 'tokenizer.json', lambda content: content.update(post_processor=None))
    (line,) = open_pretrained(str(folder)).find_warnings()
    assert 'add_eos_token' in line and 'puts no token after texts' in line
    assert not open_pretrained(str(folder), 'mean').find_warnings()


def test_quantized_weights_are_refused(plain):
    folder = plain('qwen3')
    tensors = load_file(folder / 'model.safetensors')
    name = 'layers.0.self_attn.q_proj.weight'
    tensors[name] = tensors[name].astype(np.int8)
    save_file(tensors, folder / 'model.safetensors')
    with pytest.raises(UserError, match=r'q_proj\.weight has dtype int8: quantized weights'):
        load_embedder(str(folder))
    quantized = {'quant_method': 'gptq'}
    edit(folder / 'config.json', lambda config: config.update(quantization_config=quantized))
    with pytest.raises(UserError, match=r'quantization_config \(gptq\) is not supported'):
        open_pretrained(str(folder))


def test_one_text_is_not_a_list_of_texts(plain):
    embed = load_embedder(str(plain('bert')), max_tokens=1)
    with pytest.raises(TypeError, match='expected a list of texts, not one text'):
        embed('a text', 'x')
    with pytest.raises(UserError, match='max_tokens=1: the special tokens .* alone need more'):
        embed(['a text'], 'x')
