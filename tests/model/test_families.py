"""Pretrained families have the states of transformers (stored in a golden), and are written back
unchanged.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.known import find_family
from cpt_jax.model.families.load import load_encoder, resize_token_table
from cpt_jax.model.families.stored_names import rename_tensors
from cpt_jax.model.families.write import count_elements, iterate_tensors
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_batch_sharding, make_mesh
from tests.goldens.golden import read_golden, restore
from tests.model.family_inputs import (
    BIDIRECTIONAL_CASES,
    LONG_TEXTS,
    TEXTS,
    VOCABULARY,
    WINDOWED,
    make_random_ids,
)

FULL, LOCAL = 'full_attention', 'sliding_attention'
FACTS = read_golden('families').facts
CASES = tuple(FACTS['cases'])
CONFIGS = {case: content['files']['config.json'] for case, content in FACTS['cases'].items()}
# One case of each family, for which texts are also computed separately.
ALONE = {config['model_type']: case for case, config in CONFIGS.items()}.values()


@pytest.fixture(scope='module')
def directories(tmp_path_factory) -> Callable[[str], Path]:
    """Returns a function that makes the directory of a case on first use."""
    made: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in made:
            folder = tmp_path_factory.mktemp('family')
            made[case] = restore(FACTS['cases'][case], folder)
        return made[case]

    return make


def read_expected_states(name: str, lengths: tuple[int, ...] = TEXTS) -> list[np.ndarray]:
    """Returns the states of transformers, float32[length, D] for each text."""
    return np.split(read_golden('families').arrays[name], np.cumsum(lengths)[:-1])


def load(
    folder: Path, sizes: tuple[int, int, int] = (1, 1, 1), **changes
) -> tuple[Encoder, jax.sharding.Mesh]:
    """Loads a case on a mesh, with pooling at single states. `changes`: fields of EncoderConfig."""
    config = json.loads((folder / 'config.json').read_text())
    family = find_family(config)
    encoder_config = EncoderConfig(
        vocab_size=VOCABULARY,
        **family.shape(config) | {'remat': 'none', 'pooling': 'eos'} | changes,
    ).resolve_auto('cpu')
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    files = rename_tensors(TensorFiles(folder), family, encoder_config, is_tied=False)
    return load_encoder(family, files, encoder_config, mesh), mesh


def compute_states(
    encoder: Encoder, mesh: jax.sharding.Mesh, texts: list[np.ndarray]
) -> list[np.ndarray]:
    """Returns our states, float32[length, D] for each text, computed with one text per row."""
    length = max(map(len, texts))
    tokens_RxS = np.stack([np.pad(text, (0, length - len(text))) for text in texts]).astype(
        np.int32
    )
    positions_RxS = np.tile(np.arange(length, dtype=np.int32), (len(texts), 1))
    lengths_Rx1 = np.array([len(text) for text in texts])[:, None]
    segments_RxS = np.where(
        positions_RxS < lengths_Rx1, 1 + np.arange(len(texts))[:, None], 0
    ).astype(np.int32)
    rows_a_part = len(texts) // (mesh.shape['data'] * mesh.shape['fsdp'])
    places_RxS = (np.arange(len(texts))[:, None] % rows_a_part * length + positions_RxS).astype(
        np.int32
    )
    with jax.set_mesh(mesh):
        arrays = jax.device_put(
            (tokens_RxS, segments_RxS, positions_RxS, places_RxS), get_batch_sharding(mesh)
        )
        found = np.asarray(jax.jit(Encoder.compute_states)(encoder, *arrays))
    return [states[: len(text)] for states, text in zip(found, texts, strict=True)]


@pytest.mark.parametrize('case', CASES)
def test_states_match_transformers(directories, case):
    texts = make_random_ids(TEXTS)
    expected = read_expected_states(case)
    encoder, mesh = load(directories(case))
    for mine, theirs in zip(compute_states(encoder, mesh, texts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    if case in ALONE:
        # Without padding; the longest text had none before.
        for text, theirs in list(zip(texts, expected, strict=True))[1:]:
            np.testing.assert_allclose(compute_states(encoder, mesh, [text])[0], theirs, atol=1e-4)
    assert np.abs(expected[0]).max() > 0.3 and np.abs(np.diff(expected[0], axis=0)).max() > 0.1


@pytest.mark.parametrize('case', BIDIRECTIONAL_CASES)
def test_causal_family_can_be_bidirectional(directories, case):
    expected = read_expected_states(f'{case}/both ways', (9, 9))
    encoder, mesh = load(directories(case), causal=False)
    found = compute_states(encoder, mesh, make_random_ids((9, 9)))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    # The first token attends to the others; if causal, its state depends only on its id.
    np.testing.assert_array_equal(make_random_ids(TEXTS)[0][:9], make_random_ids((9, 9))[0])
    assert np.abs(found[0][0] - read_expected_states(case)[0][0]).max() > 1e-3


@pytest.mark.parametrize(
    'case',
    [
        'gpt2',
        'opt 350m',
        'neox',
        'gptj',
        'llama',
        'qwen3, biases',
        'mpnet',
        *WINDOWED,
        'modernbert, one layer',
    ],
)
def test_states_do_not_depend_on_devices_and_attention_forms(directories, case):
    folder = directories(case)
    texts = make_random_ids((9, 5, 9, 3))
    single = compute_states(*load(folder), texts)
    for attention in ('masked', 'blocks'):
        changes = {'attention': attention, 'layer_loop': 'scan'}
        sharded = compute_states(*load(folder, (2, 2, 1), **changes), texts)
        for a, b in zip(single, sharded, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=attention)


@pytest.mark.parametrize('case', ['gemma3', 'embeddinggemma, odd', 'modernbert'])
def test_windows_in_long_texts_match_transformers(directories, case):
    """Uses texts of several blocks, in every form; 'interpreted' is the TPU kernel."""
    texts = make_random_ids(LONG_TEXTS)
    expected = read_expected_states(f'{case}/long', LONG_TEXTS)
    for sizes, changes in [
        ((1, 1, 1), {'attention': 'blocks', 'layer_loop': 'unroll'}),
        ((1, 2, 1), {'attention': 'masked', 'layer_loop': 'scan', 'remat': 'full'}),
        ((1, 1, 2), {'attention': 'interpreted', 'layer_loop': 'scan'}),
    ]:
        if case == 'embeddinggemma, odd':
            sizes = (1, 1, 1)  # it has a single key head
        for mine, theirs in zip(
            compute_states(*load(directories(case), sizes, **changes), texts), expected, strict=True
        ):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ('sizes', 'changes'),
    [
        ((1, 1, 1), {'attention': 'blocks', 'layer_loop': 'unroll'}),
        ((1, 2, 2), {'attention': 'masked', 'layer_loop': 'scan', 'remat': 'full'}),
    ],
)
def test_relative_bias_in_long_texts_matches_transformers(directories, sizes, changes):
    """The texts have distances in every bucket, and contain the padding id."""
    texts = make_random_ids(LONG_TEXTS)
    encoder, mesh = load(directories('mpnet'), sizes, **changes)
    assert all(encoder.config.padding_id in text for text in texts)
    expected = read_expected_states('mpnet/long', LONG_TEXTS)
    for mine, theirs in zip(compute_states(encoder, mesh, texts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize('case', ['xlm-roberta', 'llama', 'gte'])
def test_vectors_are_pooled_states(directories, case):
    folder = directories(case)
    texts = make_random_ids(TEXTS)
    states = read_expected_states(case)
    for pooling, pooled in [
        ('mean', lambda h: h.mean(0)),
        ('first', lambda h: h[0]),
        ('eos', lambda h: h[-1]),
    ]:
        encoder, mesh = load(folder, pooling=pooling)
        tokens_1xS, numbers = np.concatenate(texts)[None].astype(np.int32), range(1, 1 + len(texts))
        segments_1xS = np.repeat(numbers, [len(text) for text in texts])[None].astype(np.int32)
        positions_1xS = np.concatenate([np.arange(len(text)) for text in texts])[None].astype(
            np.int32
        )
        eos_Bx1 = np.cumsum([len(text) for text in texts])[:, None].astype(np.int32) - 1
        with jax.set_mesh(mesh):
            rows = jax.device_put(
                (tokens_1xS, segments_1xS, positions_1xS, eos_Bx1), get_batch_sharding(mesh)
            )
            vectors_BxTxD = jax.jit(lambda encoder, *rows: encoder(*rows))(encoder, *rows)
        for mine, theirs in zip(np.asarray(vectors_BxTxD)[:, 0], map(pooled, states), strict=True):
            np.testing.assert_allclose(mine, theirs / np.linalg.norm(theirs), atol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_written_tensors_are_bitwise_those_read(directories, case):
    folder = directories(case)
    encoder, _ = load(folder)
    family = find_family(json.loads((folder / 'config.json').read_text()))
    found, stored = (
        dict(iterate_tensors(family, encoder, VOCABULARY)),
        load_file(folder / 'model.safetensors'),
    )
    assert found.keys() == stored.keys() - {'pooler.dense.weight', 'pooler.dense.bias'}
    for name, array in found.items():
        assert array.dtype == stored[name].dtype and np.array_equal(array, stored[name]), name
    sizes = [(name, array.size) for name, array in found.items()]
    assert [*count_elements(family, encoder, VOCABULARY).items()] == sizes


def test_sharded_file_with_prefix_and_head_is_loaded(tmp_path):
    """Loads a language model in bfloat16, in shards, with a prefix and a separate output head."""
    restore(FACTS['sharded'], tmp_path)
    assert len(list(tmp_path.glob('*.safetensors'))) > 3
    encoder, mesh = load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder)} == {jnp.dtype('bfloat16')}
    found = compute_states(encoder, mesh, make_random_ids(TEXTS))
    for mine, theirs in zip(found, read_expected_states('sharded'), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    next(tmp_path.glob('model-00002-of-*.safetensors')).unlink()
    with pytest.raises(UserError, match=r'1 of \d+ shards .* are missing, model-00002-of'):
        load(tmp_path)


def test_new_token_rows_are_near_the_mean_and_distinct():
    table = np.random.default_rng(0).normal(3, 1, (77, 24)).astype(ml_dtypes.bfloat16)
    rows = resize_token_table(table, 128, range(75, 79))
    assert rows.shape == (128, 24)
    np.testing.assert_array_equal(rows[:75], table[:75].astype(np.float32))
    distance = np.abs(rows[75:79] - table.astype(np.float32).mean(0))
    assert 0.05 < distance.mean() < 0.15 and not rows[79:].any()
    assert np.abs(rows[75:79, None] - rows[None, 75:79]).max(-1)[~np.eye(4, dtype=bool)].min() > 0.1


def copy_with_change(folder: Path, tmp_path: Path, change) -> Path:
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    return tmp_path


MISTAKES = {
    'missing': (
        lambda tensors: tensors.pop('layers.1.mlp.up_proj.weight'),
        r'missing 1: layers\.1\.mlp\.up_proj\.weight',
    ),
    'unknown': (lambda tensors: tensors.update(extra=np.zeros(1)), r'unknown 1: extra'),
    'another layer': (
        lambda tensors: tensors.update({'layers.3.mlp.up_proj.weight': np.zeros(1)}),
        r'unknown 1: layers\.3',
    ),
    'shape': (
        lambda tensors: tensors.update(
            {'layers.2.mlp.up_proj.weight': np.zeros((5, 24), np.float32)}
        ),
        r'model\.safetensors: layers\.2\.mlp\.up_proj\.weight gives feed_forward\.up the shape '
        r'\[24, 5\], but config\.json describes \[24, 40\]',
    ),
    'width': (
        lambda tensors: tensors.update({'norm.weight': np.zeros(7, np.float32)}),
        r'norm\.weight gives final_norm\.scale the shape \[7\], .* \[24\]',
    ),
    'heads': (
        lambda tensors: tensors.update(
            {'layers.0.self_attn.q_proj.weight': np.zeros((23, 24), np.float32)}
        ),
        r'q_proj\.weight has shape \[23, 24\]',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_file_that_does_not_match_its_config_is_rejected_by_tensor(directories, tmp_path, mistake):
    change, line = MISTAKES[mistake]
    with pytest.raises(UserError, match=line):
        load(copy_with_change(directories('llama'), tmp_path, change))


def test_damaged_missing_and_unsupported_files_are_rejected(directories, tmp_path):
    folder = copy_with_change(directories('llama'), tmp_path, lambda tensors: None)
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r'model\.safetensors: damaged or cut short'):
        load(folder)
    (folder / 'model.safetensors').unlink()
    (folder / 'tf_model.h5').write_bytes(b'')
    with pytest.raises(
        UserError,
        match=r'has neither model\.safetensors nor .*; tf_model\.h5 cannot be read: save the model',
    ):
        open_weight_files(folder)
    with pytest.raises(
        UserError, match="model_type='t5' is not supported; supported are gpt2, opt, .*, gte$"
    ):
        find_family({'model_type': 't5'})
    with pytest.raises(UserError, match='"gte", such as alibaba-nlp-community/gte-multilingual-b'):
        find_family({'model_type': 'new'})
    config = json.loads((folder / 'config.json').read_text())
    for key, value, line in [
        ('hidden_act', 'gelu', "hidden_act='gelu' is not supported; it must be 'silu'"),
        (
            'rope_parameters',
            {'rope_type': 'longrope'},
            "rope type 'longrope' is not supported; supported are 'default', 'linear', 'llama3', "
            "'yarn'",
        ),
        (
            'rope_parameters',
            {'rope_type': 'dynamic', 'factor': 2.0},
            "rope type 'dynamic' is not supported",
        ),
    ]:
        with pytest.raises(UserError, match=line):
            find_family(config).shape(config | {key: value})


def test_unsupported_gemma_is_rejected():
    config = FACTS['configs']['gemma3']
    for key, value, line in [
        (
            'attn_logit_softcapping',
            50.0,
            'attn_logit_softcapping=50.0 is not supported; it must be None',
        ),
        (
            'final_logit_softcapping',
            30.0,
            'final_logit_softcapping=30.0 is not supported; it must be None',
        ),
        ('hidden_activation', 'relu', "hidden_activation='relu' is not supported"),
        ('sliding_window', None, 'sliding_window=None is not supported if layer_types has'),
        (
            'layer_types',
            [FULL, 'chunked_attention', LOCAL],
            'layer_types must be full_attention or sliding_attention for each of the 3',
        ),
    ]:
        with pytest.raises(UserError, match=line):
            find_family(config).shape(config | {key: value})


def test_unsupported_rotary_berts_are_rejected():
    for case, key, value, line in [
        ('gte', 'rope_parameters', {'rope_type': 'dynamic', 'factor': 2.0}, "type 'dynamic' is no"),
        ('gte', 'rope_scaling', {'type': 'ntk', 'factor': 8.0}, "rope type 'ntk' is not supported"),
        ('gte', 'layer_norm_type', 'rms_norm', "layer_norm_type='rms_norm' is not supported"),
        ('gte', 'position_embedding_type', 'absolute', "it must be 'rope'"),
        ('gte', 'logn_attention_scale', True, 'logn_attention_scale=True is not supported'),
        ('gte', 'hidden_act', 'relu', "hidden_act='relu' is not supported"),
        ('nomic_bert', 'num_experts', 8, 'num_experts=8 is not supported'),
        ('nomic_bert', 'prenorm', True, 'prenorm=True is not supported; it must be False'),
        ('nomic_bert', 'qkv_proj_bias', True, 'qkv_proj_bias=True is not supported'),
        ('nomic_bert', 'rotary_emb_base', 10_000, 'rotary_emb_base=10000 is not supported; it mu'),
        ('nomic_bert', 'n_embd', 32, 'n_embd=32, but transformers reads hidden_size=24: set hid'),
        ('nomic_bert', 'type_vocab_size', 0, 'type_vocab_size=0: must be an integer from 1'),
        ('bert', 'type_vocab_size', 0, 'type_vocab_size=0: must be an integer from 1'),
        ('roberta', 'type_vocab_size', 0, 'type_vocab_size=0: must be an integer from 1'),
    ]:
        with pytest.raises(UserError, match=line):
            find_family(CONFIGS[case]).shape(CONFIGS[case] | {key: value})


def test_config_of_nomic_ai_has_the_sizes_of_transformers():
    """transformers ignores the keys of nomic-ai's own code, and takes its defaults."""
    published = FACTS['configs']['nomic-embed-text-v1']['old']
    read = FACTS['configs']['nomic-embed-text-v1']['new']
    assert 'hidden_size' not in published and 'n_embd' in published
    ours = find_family(published).shape(published)
    assert ours == find_family(published).shape(read)
    sizes = (ours['width'], ours['layers'], ours['rotary_base'], ours['max_length'])
    assert sizes == (768, 12, 1000, 8192)


def test_rope_scaling_goes_before_rope_parameters():
    """As in transformers 5.23 (`convert_rope_params_to_dict`)."""
    config = CONFIGS['llama'] | {
        'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
        'rope_theta': 500.0,
    }
    found = find_family(config).shape(config)
    assert (found['rotary_base'], found['rotary_scaling']) == (500, ('linear', 2))
    # A base beside `rope_parameters` without one.
    del config['rope_scaling']
    config['rope_parameters'] = {'rope_type': 'default'}
    assert find_family(config).shape(config)['rotary_base'] == 500


@pytest.mark.parametrize('name', ['gemma 3 1b', 'gemma 3 1b, both ways', 'modernbert base'])
def test_configs_of_transformers_4_and_5_are_read_alike(name):
    """The golden has each config as written by version 4, and as rewritten by version 5."""
    old, new = (FACTS['configs'][name][version] for version in ('old', 'new'))
    assert 'layer_types' in new and 'rope_theta' not in new and 'global_rope_theta' not in new
    ours = find_family(old).shape(old)
    assert ours == find_family(new).shape(new)
    config = EncoderConfig(vocab_size=VOCABULARY, **ours)
    assert config.local_layers == tuple(kind == LOCAL for kind in new['layer_types'])
    assert len(set(config.local_layers)) == 2
    # In transformers, tokens at the distance of the window are excluded in Gemma and included in
    # ModernBERT.
    assert config.reach == FACTS['configs'][name]['window'] - ('gemma' in name)
    assert config.rotary_base == new['rope_parameters'][FULL]['rope_theta']
    assert config.rotary_base > 10 * config.local_rotary_base == 100_000
