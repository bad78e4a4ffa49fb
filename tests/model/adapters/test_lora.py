"""Adapters are exchanged with PEFT (stored in a golden) in both directions, and can be merged."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cpt_jax.model.adapters.lora import MATRICES, LoRA
from cpt_jax.model.adapters.peft import AdaptedFiles, write_adapter
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.write import iterate_tensors
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.parameter import join_frozen, split_frozen
from cpt_jax.origin.pretrained import is_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_batch_sharding, make_mesh
from tests.goldens.golden import read_golden, restore
from tests.model.adapters.lora_inputs import (
    LENGTHS,
    VOCABULARY,
    Base,
    checksums,
    make_adapted,
    tokens,
    write_our_adapter,
)

CASES = 'llama', 'opt', 'gpt2'


@pytest.fixture(scope='module')
def bases(tmp_path_factory) -> Callable[[str], Base]:
    """Returns a function that makes the base of a case on first use."""

    @functools.cache
    def make(case: str) -> Base:
        captured = read_golden('lora').facts['bases'][case]
        folder = restore(captured, tmp_path_factory.mktemp(case))
        return Base(folder, captured['files']['config.json'])

    return make


# Compiled once for all encoders of the same structure.
_states = jax.jit(lambda encoder, *rows: encoder.compute_states(*rows))


def compute_states(encoder: Encoder) -> np.ndarray:
    """Returns the states at the ends of two texts, [2, D]."""
    length = max(LENGTHS)
    segments = (np.arange(length) < np.array(LENGTHS)[:, None]).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    ends = (np.arange(2)[:, None] * length + np.array(LENGTHS)[:, None] - 1).astype(np.int32)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        rows = [
            jax.device_put(array, get_batch_sharding(mesh))
            for array in (tokens(), segments, positions, ends)
        ]
        return np.asarray(_states(encoder, *rows))[:, 0]


@pytest.mark.parametrize('case', ['llama', 'opt'])
def test_peft_reproduces_our_adapter(bases, case, tmp_path):
    """The states in the golden are those of PEFT with the adapter that is written here."""
    base, golden = bases(case), read_golden('lora')
    encoder = write_our_adapter(base, tmp_path)
    assert checksums(tmp_path) == golden.facts['ours'][case]
    targets = [name for name in MATRICES if name != 'gate' or base.config.is_gated]
    # PEFT found an adapter for every target.
    assert golden.facts['adapted matrices'][case] == 2 * len(targets)
    ours = compute_states(encoder)
    np.testing.assert_allclose(ours, golden.arrays[f'ours/{case}'], atol=1e-4)
    assert np.abs(ours - golden.arrays[f'base/{case}']).max() > 0.05
    # Our own reader merges it.
    merged = base.load(AdaptedFiles(TensorFiles(base.folder), base.family, tmp_path))
    np.testing.assert_allclose(compute_states(merged), ours, atol=1e-4)
    # With B = 0 the model equals the base, up to rounding: in the OPT base, the keys of the last
    # layer are folded into the queries.
    trained, frozen = split_frozen(encoder)

    def clear(path, a):
        return jnp.zeros_like(a) if 'lora_b' in jax.tree_util.keystr(path) else a

    fresh = join_frozen(jax.tree_util.tree_map_with_path(clear, trained), frozen)
    np.testing.assert_allclose(compute_states(fresh), compute_states(base.load()), atol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_we_reproduce_an_adapter_of_peft(bases, case, tmp_path):
    base, golden = bases(case), read_golden('lora')
    restore(golden.facts['theirs'][case], tmp_path)
    assert is_pretrained(str(tmp_path))
    found = compute_states(base.load(AdaptedFiles(TensorFiles(base.folder), base.family, tmp_path)))
    np.testing.assert_allclose(found, golden.arrays[f'theirs/{case}'], atol=1e-4)
    assert np.abs(found - golden.arrays[f'base/{case}']).max() > 0.05


def test_alpha_patterns_match_whole_names(bases, tmp_path):
    """EVA writes them with the prefix that the modules have in a causal language model."""
    base = bases('llama')
    restore(read_golden('lora').facts['theirs']['llama'], tmp_path)
    weights, path = tmp_path / 'adapter_model.safetensors', tmp_path / 'adapter_config.json'
    tensors = load_file(weights)
    save_file(
        {name.replace('layers', 'model.layers', 1): tensors[name] for name in tensors}, weights
    )
    config = json.loads(path.read_text())
    name = 'layers.{}.self_attn.v_proj.weight'

    def compute_delta(layer: int, pattern: dict[str, float]) -> np.ndarray:
        path.write_text(json.dumps(config | {'alpha_pattern': pattern}))
        base_files = TensorFiles(base.folder)
        adapted = AdaptedFiles(base_files, base.family, tmp_path)
        return adapted.read(name.format(layer)) - base_files.read(name.format(layer))

    pattern = {'model.layers.1.self_attn.v_proj': 70.0}
    np.testing.assert_allclose(
        compute_delta(1, pattern), 10 * compute_delta(1, {}), atol=1e-6, rtol=1e-4
    )
    np.testing.assert_array_equal(compute_delta(0, pattern), compute_delta(0, {}))


def test_merged_adapter_matches_unmerged(bases, tmp_path, monkeypatch):
    base = bases('llama')
    encoder = make_adapted(base, LoRA(rank=4, base='nf4'))
    tensors = {
        name: np.ascontiguousarray(array)
        for name, array in iterate_tensors(base.family, encoder, VOCABULARY)
    }
    save_file(tensors, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    ours = compute_states(encoder)
    np.testing.assert_allclose(compute_states(base.load(TensorFiles(tmp_path))), ours, atol=1e-5)
    assert np.abs(ours - compute_states(base.load())).max() > 0.05
    # Several processes gather one layer at a time; each copies the tensors that it wants.
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    wanted = [*tensors][::2]
    gathered = dict(iterate_tensors(base.family, encoder, VOCABULARY, wanted))
    assert [*gathered] == wanted
    for name in wanted:
        np.testing.assert_array_equal(gathered[name], tensors[name])


def test_adapters_are_initialized_as_in_peft(bases):
    """A is uniform within 1 / sqrt(inputs), B is zero, and other matrices have no adapter."""
    shape = bases('opt').config
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):

        def make():
            return LoRA(rank=16, targets=('down', 'out')).add_adapters(
                Encoder(shape, nnx.Rngs(0)), nnx.Rngs(1)
            )

        assert not hasattr(jax.eval_shape(make).last.attention, 'query_adapter')
        a, b = jax.jit(
            lambda: (
                make().last.feed_forward.down_adapter.lora_a[...],
                make().blocks.attention.out_adapter.lora_b[...],
            )
        )()
    assert a.shape == (128, 16) and 0.95 < np.abs(a).max() * 128**0.5 <= 1
    np.testing.assert_allclose(np.std(a), 128**-0.5 / 3**0.5, rtol=0.05)
    assert b.shape == (1, 16, 64) and not np.any(b)


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'rank': -1}, r'lora\.rank=-1'),
        ({'rank': 4, 'alpha': 0}, r'lora\.alpha=0'),
        ({'rank': 4, 'dropout': 1.0}, r'lora\.dropout=1\.0'),
        (
            {'rank': 4, 'targets': ['query', 'q_proj']},
            r'lora\.targets=.*choose one or more of query, key',
        ),
        ({'rank': 4, 'targets': ()}, r'lora\.targets=\[\]'),
        (
            {'rank': 4, 'base': 'fp4'},
            r'lora\.base=.fp4.: choose one of float32, bfloat16, nf4, int8',
        ),
        ({'base': 'nf4'}, r'lora\.base=nf4 with lora\.rank=0'),
    ],
)
def test_invalid_settings_are_rejected(keys, message):
    with pytest.raises(UserError, match=message):
        LoRA(**keys)


def test_settings_that_do_not_fit_model_or_mesh_are_rejected(bases, meshes):
    shape = dataclasses.replace(bases('llama').config, remat='full')
    LoRA(rank=4, base='nf4').check(shape, meshes[8, 1, 1])
    with pytest.raises(
        UserError,
        match=r'1 blocks of 64 inputs \(model\.width=64\) .* mesh\.fsdp=8; set mesh\.fsdp=1 and '
        r'mesh\.data=-1',
    ):
        LoRA(rank=4, base='nf4').check(shape, meshes[1, 8, 1])
    with pytest.raises(
        UserError,
        match=r'2 blocks of 64 inputs \(model\.hidden=128\) .* mesh\.tensor=8; set mesh\.tensor=2',
    ):
        LoRA(rank=4, base='nf4').check(shape, meshes[1, 1, 8])
    with pytest.raises(
        UserError, match=r'model\.hidden=100 is not a multiple of 64: set lora\.base to'
    ):
        LoRA(rank=4, base='nf4').check(dataclasses.replace(shape, hidden=100), meshes[8, 1, 1])
    with pytest.raises(UserError, match=r'model\.remat=none would keep'):
        LoRA(rank=4, base='int8').check(dataclasses.replace(shape, remat='none'), meshes[8, 1, 1])
    with pytest.raises(UserError, match=r'has none of these matrices'):
        LoRA(rank=4, targets=('gate',)).check(bases('opt').config, meshes[8, 1, 1])


def test_matrix_without_a_peft_form_is_rejected(bases, tmp_path):
    base = bases('gpt2')
    with pytest.raises(
        UserError,
        match=r'query is a part of h\.0\.attn\.c_attn\.weight, for which PEFT has a single adapter',
    ):
        write_adapter(tmp_path, base.family, base.config, {}, {'attention.query': []})


def test_adapters_with_more_than_lora_are_rejected(bases, tmp_path):
    base = bases('llama')
    adapter_config = {'base_model_name_or_path': str(base.folder), 'lora_alpha': 1}
    write_adapter(tmp_path, base.family, base.config, adapter_config, {})

    def open_with(**keys) -> None:
        config = json.loads((tmp_path / 'adapter_config.json').read_text())
        (tmp_path / 'adapter_config.json').write_text(json.dumps(config | keys))
        AdaptedFiles(TensorFiles(base.folder), base.family, tmp_path)

    open_with()
    for key, value in {
        'use_dora': True,
        'init_lora_weights': 'pissa',
        'bias': 'all',
        'peft_type': 'IA3',
    }.items():
        with pytest.raises(UserError, match=f'adapter_config.json: not supported: .*{key}='):
            open_with(**{key: value})
        open_with(**{key: {'peft_type': 'LORA', 'bias': 'none'}.get(key)})
    path: Path = tmp_path / 'adapter_model.safetensors'
    save_file(
        load_file(path)
        | {'base_model.model.layers.9.mlp.up_proj.lora_A.weight': np.zeros((1, 64), np.float32)},
        path,
    )
    with pytest.raises(
        UserError,
        match=r'layers\.9\.mlp\.up_proj\.lora_A\.weight is not a LoRA matrix of a linear layer',
    ):
        open_with()
