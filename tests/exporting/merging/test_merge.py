"""Merged runs and directories: their weights, their use afterwards, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.merging import runs
from cpt_jax.exporting.merging.merge import merge
from cpt_jax.origin.earlier_run import find_run
from cpt_jax.origin.resolve import resolve_origin
from cpt_jax.runs.checkpoint import load_some_params, read_param_shapes
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_mesh
from tests.embed.test_embedder import write_run

OLD_RUNS = Path(__file__).parents[2] / 'fixtures' / 'old_runs'
BERT, LORA = OLD_RUNS / 'bert_model', OLD_RUNS / 'lora'


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
        {'model': reference, 'weight': weight, 'method': 'linear'}
        for reference, weight in zip(references, (0.25, 0.75), strict=True)
    ]
    assert origin.provenance.merged == parts
    card = (output / 'README.md').read_text()
    assert f'| `{run}@100` | 0.25 |' in card and f'| `{run}@200` | 0.75 |' in card


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
