"""Merged runs and directories: their weights, their use afterwards, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.evals.tasks.codesearch import _find_python_sources
from cpt_jax.exporting.merging import runs
from cpt_jax.exporting.merging.directories import check_same_directories
from cpt_jax.exporting.merging.merge import merge
from cpt_jax.origin.earlier_run import find_run
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.origin.resolve import resolve_origin
from cpt_jax.runs.checkpoint import load_some_params, read_param_shapes
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_mesh
from tests.embed.test_embedder import write_run
from tests.origin.test_sentence_folders import write_sentence_files

OLD_RUNS = Path(__file__).parents[2] / 'fixtures' / 'old_runs'
BERT, LORA = OLD_RUNS / 'bert_model', OLD_RUNS / 'lora'
QUERY = 'encoder.layer.0.attention.self.query'  # a matrix of BERT


@pytest.fixture(scope='module')
def run(tmp_path_factory, tokenizer) -> Path:
    """A run with checkpoints of two seeds, and two layers in its stack."""
    return write_run(tmp_path_factory.mktemp('merge') / 'run', tokenizer, layers=3)


def read_params(reference: str) -> dict[str, np.ndarray]:
    found = find_run(reference, '--model')
    names = read_param_shapes(found.directory, found.step)
    return load_some_params(found.directory, found.step, names)


def test_runs_become_a_run_with_the_mean_of_their_weights(run, tmp_path):
    references = f'{run}@100', f'{run}@200'
    output = tmp_path / 'soup'
    assert merge(references, output, (1, 3)) == 'run'
    first, second, merged = map(read_params, (*references, str(output)))
    assert merged.keys() == first.keys()
    assert {'log_scale', 'encoder.token_embedding'} <= merged.keys()
    for name, array in merged.items():
        expected = 0.25 * first[name].astype(np.float64) + 0.75 * second[name]
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
        assert array.dtype == np.float32

    # It can be embedded with and started from, and names its parts.
    embed = load_embedder(str(output))
    assert embed.model_name == 'soup@200' and np.isfinite(embed(['list'], 'x')).all()
    origin = resolve_origin(str(output))
    parts = [
        {'model': reference, 'weight': weight, 'method': 'linear', 'init_from': []}
        for reference, weight in zip(references, (0.25, 0.75), strict=True)
    ]
    assert origin.provenance.merged == parts
    card = (output / 'README.md').read_text()
    assert f'| `{run}@100` | 0.25 |' in card and f'| `{run}@200` | 0.75 |' in card


def test_merged_run_claims_clean_data_only_if_all_parts_have_the_same(run):
    first = find_run(f'{run}@100', '--models')
    known = {'cleaned': {'pairs': ['sts/stsb']}, 'sources': {'pairs': '1'}}
    config = {**first.provenance.config, 'init_from': 'models/other'}
    parts = [
        dataclasses.replace(first, provenance=dataclasses.replace(first.provenance, **changed))
        for changed in [
            known,
            known,
            known | {'cleaned': {}},
            known | {'sources': {'pairs': '2'}},
            known | {'config': config},
        ]
    ]
    assert runs._find_shared_cleaned(parts[:2]) == known['cleaned']
    assert [runs._find_shared_cleaned([parts[0], part]) for part in parts[2:]] == [{}] * 3


def test_merged_run_names_the_sources_and_origins_of_all_parts(run, tmp_path, monkeypatch):
    """Otherwise the functions that only the second part was trained on are not counted."""
    code = {'kind': 'python_source', 'weight': 1.0}
    sources = {
        '100': {'code': ({**code, 'holdout': 0.1}, '1')},
        '200': {'again': ({**code, 'holdout': 0.1}, '1'), 'code': ({**code, 'holdout': 0.0}, '2')},
    }

    def find_trained_run(reference: str, *args, **kwargs):
        found = find_run(reference, '--models')
        given = sources[reference.rpartition('@')[2]]
        sections = {name: section for name, (section, _) in given.items()}
        config = found.provenance.config
        config = {**config, 'data': {**config['data'], 'sources': sections}}
        config['init_from'] = f'models/{[*sections][0]}'
        fingerprints = {name: fingerprint for name, (_, fingerprint) in given.items()}
        provenance = dataclasses.replace(found.provenance, config=config, sources=fingerprints)
        return dataclasses.replace(found, provenance=provenance)

    with monkeypatch.context() as patch:
        patch.setattr('cpt_jax.exporting.merging.merge.resolve_model', find_trained_run)
        merge((f'{run}@100', f'{run}@200'), tmp_path / 'soup')
    settings = load_embedder(str(tmp_path / 'soup')).settings
    assert settings['trained_on'].keys() == {'code', 'code_2'}
    found = _find_python_sources(settings)
    assert sorted(section['holdout'] for section in found) == [0.0, 0.1]
    provenance = find_run(str(tmp_path / 'soup'), '').provenance
    assert provenance.sources == {'code': '1', 'code_2': '2'}
    assert provenance.list_origins() == ['models/code', 'models/again']


def test_slerp_merges_the_layers_of_a_stack_one_by_one(run, tmp_path):
    references = f'{run}@100', f'{run}@200'
    merge(references, tmp_path / 'soup', method='slerp')
    first, second, merged = map(read_params, (*references, str(tmp_path / 'soup')))
    name = 'encoder.blocks.attention.query'
    for layer in range(len(merged[name])):
        a, b = (params[name][layer].astype(np.float64) for params in (first, second))
        angle = np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
        expected = np.sin(angle / 2) / np.sin(angle) * (a + b)
        np.testing.assert_allclose(merged[name][layer], expected, atol=1e-6)


def copy_bert(folder: Path, seed: int) -> Path:
    """Returns a copy of the small BERT with other weights."""
    shutil.copytree(BERT, folder)
    rng = np.random.default_rng(seed)
    tensors = load_file(folder / 'model.safetensors')
    noisy = {
        name: (array + 0.1 * rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in tensors.items()
    }
    save_file(noisy, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def test_directories_become_a_directory_with_the_mean_of_their_weights(tmp_path):
    other = copy_bert(tmp_path / 'other', 1)
    output = tmp_path / 'merged'
    assert merge([str(BERT), str(other)], output, (3, 1)) == 'pretrained model'
    first, second, merged = (
        load_file(folder / 'model.safetensors') for folder in (BERT, other, output)
    )
    assert merged.keys() == first.keys()
    for name, array in merged.items():
        expected = 0.75 * first[name].astype(np.float64) + 0.25 * second[name]
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
    names = {path.name for path in BERT.iterdir()} | {'README.md'}
    assert {path.name for path in output.iterdir()} == names
    assert np.isfinite(load_embedder(str(output))(['list'], 'x')).all()
    assert resolve_origin(str(output)).pretrained_config == json.loads(
        (BERT / 'config.json').read_text()
    )


def write_adapter(folder: Path, base: Path, scale: float) -> Path:
    """Writes an adapter of one matrix, with a pooling, prompts and a tokenizer of its own."""
    folder.mkdir()
    write_sentence_files(folder, 'cls', prompts={'query': 'find: '}, max_seq_length=11)
    tokenizer = tokenizers.Tokenizer.from_file(str(base / 'tokenizer.json'))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='$A file', special_tokens=[('file', 7)]
    )
    tokenizer.save(str(folder / 'tokenizer.json'))
    content = {'peft_type': 'LORA', 'base_model_name_or_path': str(base), 'r': 1, 'lora_alpha': 1}
    (folder / 'adapter_config.json').write_text(json.dumps(content))
    rows, columns = load_file(base / 'model.safetensors')[f'{QUERY}.weight'].shape
    tensors = {
        f'base_model.model.{QUERY}.lora_A.weight': np.ones((1, columns), np.float32),
        f'base_model.model.{QUERY}.lora_B.weight': np.full((rows, 1), scale, np.float32),
    }
    save_file(tensors, folder / 'adapter_model.safetensors')
    return folder


def test_merged_adapters_keep_their_own_pooling_prompts_and_tokenizer(tmp_path):
    base = Path(shutil.copytree(BERT, tmp_path / 'base'))
    write_sentence_files(base, 'mean', prompts={'query': 'old: ', 'document': 'old: '})
    adapters = [write_adapter(tmp_path / f'adapter{i}', base, i) for i in range(2)]
    merge([*map(str, adapters)], tmp_path / 'out')
    expected, found = (open_pretrained(str(path)) for path in (adapters[0], tmp_path / 'out'))
    assert found.shape == expected.shape and found.shape['pooling'] == 'first'
    assert found.tokenizer.fingerprint == expected.tokenizer.fingerprint
    assert found.max_tokens == expected.max_tokens == 11
    weight = load_file(tmp_path / 'out' / 'model.safetensors')[f'{QUERY}.weight']
    before = load_file(base / 'model.safetensors')[f'{QUERY}.weight']
    np.testing.assert_allclose(weight, before + 0.5, rtol=0, atol=1e-6)


def test_transformer_in_a_folder_is_merged_in_its_folder(tmp_path):
    folder = tmp_path / 'model'
    shutil.copytree(BERT, folder / '0_Transformer')
    write_sentence_files(folder, 'mean')
    modules = json.loads((folder / 'modules.json').read_text())
    modules[0]['path'] = '0_Transformer'
    (folder / 'modules.json').write_text(json.dumps(modules))
    merge([str(folder), str(folder)], tmp_path / 'out')
    found = open_pretrained(str(tmp_path / 'out'))
    assert found.files.names == open_pretrained(str(folder)).files.names


def test_directories_must_pool_and_compare_alike_in_the_form_of_transformers(tmp_path):
    model = open_pretrained(str(BERT))
    for changed, message in [
        ({'includes_prompt': False}, 'has another include_prompt of the pooling than'),
        ({'similarity': 'dot'}, 'has another similarity than .*: dot, not cosine'),
        ({'has_own_form': False}, 'is an adapter that trained tokens around texts, which'),
        ({'directory': tmp_path}, 'has no config.json: merging needs a directory in the form of'),
    ]:
        with pytest.raises(UserError, match=message):
            check_same_directories([model, dataclasses.replace(model, **changed)])
    normalized = dataclasses.replace(model, similarity='dot', is_normalized=True, max_tokens=9)
    check_same_directories([model, normalized])


def test_adapters_are_merged_into_their_base_first(tmp_path, monkeypatch):
    base = str(OLD_RUNS / 'llama_model')
    part = runs.RunPart(find_run(str(LORA), '--models', base))
    monkeypatch.setattr(runs, 'RunPart', lambda run: part)  # loading the base takes seconds
    merge([str(LORA), str(LORA)], tmp_path / 'soup', base=base)
    provenance = find_run(str(tmp_path / 'soup'), '--model').provenance
    assert not provenance.has_adapters and provenance.base is None
    adapters, merged = read_params(str(LORA)), read_params(str(tmp_path / 'soup'))
    assert not any('adapter' in name for name in merged)
    name = 'encoder.blocks.attention.query'
    a_LxDxR, b_LxRxHxK = (adapters[f'{name}_adapter.lora_{side}'] for side in 'ab')
    delta = np.einsum('ldr,lrhk->ldhk', a_LxDxR, b_LxRxHxK) * part.run.lora.alpha
    codes = part._encoder.blocks.attention.query  # the base is stored as NF4 codes
    with jax.set_mesh(get_mesh(codes.codes[...])):
        weight = np.asarray(jax.jit(lambda codes: codes.dequantize())(codes))
    expected = weight + delta / part.run.lora.rank
    np.testing.assert_allclose(merged[name], expected, atol=1e-6)
    assert np.abs(delta).max() > 1e-5


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ((1,), '--weights: 1 weights for 2 models: give one for each'),
        ((1, 0), '--weights 1,0: must be above 0'),
    ],
)
def test_weights_must_fit(run, tmp_path, weights, message):
    with pytest.raises(UserError, match=message):
        merge([f'{run}@100', f'{run}@200'], tmp_path / 'out', weights)


def test_models_of_other_forms_are_refused_in_one_line(run, tokenizer, tmp_path):
    wider = write_run(tmp_path / 'wider', tokenizer, layers=2)
    with pytest.raises(
        UserError, match='--models .*wider: has another model.layers than .*: 2, no'
    ):
        merge([str(run), str(wider)], tmp_path / 'out')
    other = write_run(tmp_path / 'other', tokenizer.with_closing('shared'), layers=3)
    with pytest.raises(UserError, match='--models .*other: has another tokenizer'):
        merge([str(run), str(other)], tmp_path / 'out')
    with pytest.raises(UserError, match='--models .*llama_model: has another model_type than .*'):
        merge([str(BERT), str(OLD_RUNS / 'llama_model')], tmp_path / 'out')
    with pytest.raises(UserError, match='give two or more'):
        merge([str(BERT)], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_parameters_are_read_in_groups_of_bounded_size(monkeypatch):
    monkeypatch.setattr(runs, '_BYTES_AT_ONCE', 100)
    shapes = {'a': (20,), 'b': (), 'c': (5,), 'd': (9, 9), 'e': (1,)}
    assert [*runs._group_names(shapes)] == [['a', 'b'], ['c'], ['d'], ['e']]
