"""Pretrained families against transformers: the same states from the same files, and the same files back."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.errors import UserError
from cpt_jax.mesh import batch_sharding, make_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.files import Files
from cpt_jax.model.families.known import family_of
from cpt_jax.model.families.load import grown, load_encoder, written
from cpt_jax.model.shape import Shape

torch = pytest.importorskip('torch', reason='transformers is the oracle (requirements-dev.txt)')
transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY, LENGTHS = 77, (19, 12, 1)
LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 2.0}
SMALL = {'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 3, 'num_attention_heads': 6, 'max_position_embeddings': 40}
GPT = {'n_embd': 24, 'n_layer': 2, 'n_head': 4, 'n_positions': 40, 'bos_token_id': None, 'eos_token_id': None}
OPT = {'hidden_size': 24, 'ffn_dim': 40, 'num_hidden_layers': 3, 'num_attention_heads': 6, 'max_position_embeddings': 40}
YARN = {'rope_type': 'yarn', 'rope_theta': 500.0, 'factor': 4.0, 'original_max_position_embeddings': 10}
PARTIAL_YARN = YARN | {'beta_fast': 4, 'beta_slow': 0.5, 'mscale': 0.7, 'mscale_all_dim': 0.3, 'truncate': False}
LONG = {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e3}
GEMMA = SMALL | {'num_key_value_heads': 2, 'head_dim': 10, 'query_pre_attn_scalar': 7, 'sliding_window': 5}
MODERN = SMALL | {'num_attention_heads': 4, 'local_attention': 6, 'pad_token_id': 0}
FULL, LOCAL = 'full_attention', 'sliding_attention'
CASES = {
    'gpt2': ('GPT2', GPT | {'n_head': 6}),
    'gpt2, one layer, relu': ('GPT2', GPT | {'n_layer': 1, 'n_inner': 31, 'activation_function': 'relu', 'layer_norm_epsilon': 1e-3}),
    'opt': ('OPT', OPT | {'word_embed_proj_dim': 24}),
    'opt 350m': ('OPT', OPT | {'word_embed_proj_dim': 10, 'do_layer_norm_before': False}),
    'opt, gelu': ('OPT', OPT | {'word_embed_proj_dim': 24, 'activation_function': 'gelu', 'num_hidden_layers': 1}),
    'neox': ('GPTNeoX', SMALL | {'num_attention_heads': 3, 'rotary_pct': 0.5}),
    'neox, in turn': ('GPTNeoX', SMALL | {'num_attention_heads': 3, 'use_parallel_residual': False, 'hidden_act': 'gelu_new'}),
    'gptj': ('GPTJ', GPT | {'rotary_dim': 4}),
    'gptj, all turns': ('GPTJ', GPT | {'rotary_dim': 6, 'n_inner': 31, 'n_layer': 3}),
    'codegen': ('CodeGen', GPT | {'n_embd': 32, 'rotary_dim': 4}),
    'codegen, 8 heads': ('CodeGen', GPT | {'n_embd': 48, 'n_head': 8, 'rotary_dim': 6}),
    'llama': ('Llama', SMALL | {'num_key_value_heads': 2, 'rms_norm_eps': 1e-3}),
    'llama 3, biases': ('Llama', SMALL | {'rope_parameters': LLAMA3 | {'original_max_position_embeddings': 16}, 'attention_bias': True}),
    'llama, linear': ('Llama', SMALL | {'head_dim': 10, 'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4}}),
    'llama, yarn': ('Llama', SMALL | {'num_attention_heads': 2, 'rope_parameters': YARN}),
    'mistral': ('Mistral', SMALL | {'num_key_value_heads': 3, 'sliding_window': None}),
    'mistral, head width': ('Mistral', SMALL | {'num_key_value_heads': 1, 'head_dim': 8, 'sliding_window': 24}),
    'qwen2': ('Qwen2', SMALL | {'num_key_value_heads': 2}),
    'qwen2, tied': ('Qwen2', SMALL | {'num_key_value_heads': 6, 'tie_word_embeddings': True, 'num_hidden_layers': 1}),
    'qwen2, yarn': ('Qwen2', SMALL | {'num_attention_heads': 2, 'num_key_value_heads': 1, 'rope_parameters': PARTIAL_YARN}),
    'qwen3': ('Qwen3', SMALL | {'num_key_value_heads': 2, 'head_dim': 10}),
    'qwen3, biases': ('Qwen3', SMALL | {'num_key_value_heads': 6, 'head_dim': 4, 'attention_bias': True}),
    'qwen3, yarn': ('Qwen3', SMALL | {'num_key_value_heads': 2, 'head_dim': 10, 'rope_parameters': YARN | {'attention_factor': 1.3}}),
    'gemma3': ('Gemma3Text', GEMMA | {'num_hidden_layers': 5, 'sliding_window_pattern': 3}),
    'gemma3, full at the end': ('Gemma3Text', GEMMA | {'layer_types': [LOCAL, LOCAL, FULL], 'num_key_value_heads': 6, 'head_dim': 4}),
    'gemma3, one layer': (
        'Gemma3Text',
        GEMMA | {'num_hidden_layers': 1, 'attention_bias': True, 'hidden_activation': 'gelu', 'sliding_window': 1},
    ),
    'gemma3, all full': ('Gemma3Text', GEMMA | {'layer_types': [FULL] * 3, 'rope_parameters': {FULL: YARN}}),
    'embeddinggemma': ('Gemma3Text', GEMMA | {'num_hidden_layers': 4, 'use_bidirectional_attention': True, 'sliding_window_pattern': 2}),
    'embeddinggemma, odd': (
        'Gemma3Text',
        GEMMA
        | {
            'use_bidirectional_attention': True,
            'sliding_window': 9,
            'layer_types': [FULL, LOCAL, LOCAL],
            'num_key_value_heads': 1,
            'rope_parameters': {FULL: LONG, LOCAL: YARN},
        },
    ),
    'embeddinggemma, told twice': (
        'Gemma3Text',
        GEMMA | {'use_bidirectional_attention': True, 'is_causal': False, 'sliding_window_pattern': 2},
    ),
    'modernbert': ('ModernBert', MODERN | {'num_hidden_layers': 5}),
    'modernbert, biases': (
        'ModernBert',
        MODERN | {'num_hidden_layers': 4, 'attention_bias': True, 'norm_bias': True, 'local_attention': 9, 'norm_eps': 1e-3},
    ),
    'modernbert, one layer': ('ModernBert', MODERN | {'num_hidden_layers': 1, 'hidden_activation': 'gelu_new'}),
    'modernbert, one local layer': ('ModernBert', MODERN | {'num_hidden_layers': 1, 'layer_types': [LOCAL]}),
    'bert': ('Bert', SMALL),
    'bert, tanh': ('Bert', SMALL | {'num_hidden_layers': 1, 'hidden_act': 'gelu_new', 'layer_norm_eps': 1e-3, 'type_vocab_size': 3}),
}
WINDOWED = ('gemma3', 'embeddinggemma', 'embeddinggemma, odd', 'modernbert', 'modernbert, one layer')
BOTH_WAYS = ('gpt2', 'opt', 'llama', 'mistral', 'qwen2', 'qwen3', 'gemma3')  # transformers reads config.is_causal


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """{case: (transformers' model, its directory)}, made when asked for."""
    made = {}

    def make(case: str):
        if case not in made:
            name, sizes = CASES[case]
            config = getattr(transformers, f'{name}Config')(vocab_size=VOCABULARY, **sizes)
            torch.manual_seed(0)
            model = getattr(transformers, f'{name}Model')(config).eval()
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.2 * torch.randn_like(weight))  # nothing at its starting value
            folder = tmp_path_factory.mktemp('family')
            model.save_pretrained(folder)
            made[case] = model, folder
        return made[case]

    return make


def load(folder: Path, sizes: tuple[int, int, int] = (1, 1, 1), **changes) -> tuple[Encoder, jax.sharding.Mesh]:
    """Ours, on some devices, with the state at each place that is asked for."""
    config = json.loads((folder / 'config.json').read_text())
    family = family_of(config)
    shape = Shape(vocab_size=VOCABULARY, **family.shape(config) | {'remat': 'none', 'pooling': 'eos'} | changes).on('cpu')
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    return load_encoder(family, Files(folder), shape, mesh), mesh


def ids_of(lengths=LENGTHS) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(1, VOCABULARY, length) for length in lengths]


def our_states(encoder: Encoder, mesh: jax.sharding.Mesh, texts: list[np.ndarray]) -> list[np.ndarray]:
    """float32[length, D] of each text: one a row, with a state for each of its places."""
    length = max(map(len, texts))
    tokens_RxS = np.stack([np.pad(text, (0, length - len(text))) for text in texts]).astype(np.int32)
    positions_RxS = np.tile(np.arange(length, dtype=np.int32), (len(texts), 1))
    lengths_Rx1 = np.array([len(text) for text in texts])[:, None]
    segments_RxS = np.where(positions_RxS < lengths_Rx1, 1 + np.arange(len(texts))[:, None], 0).astype(np.int32)
    rows_a_part = len(texts) // (mesh.shape['data'] * mesh.shape['fsdp'])
    places_RxS = (np.arange(len(texts))[:, None] % rows_a_part * length + positions_RxS).astype(np.int32)
    with jax.set_mesh(mesh):
        arrays = jax.device_put((tokens_RxS, segments_RxS, positions_RxS, places_RxS), batch_sharding(mesh))
        found = np.asarray(jax.jit(Encoder.states)(encoder, *arrays))
    return [states[: len(text)] for states, text in zip(found, texts, strict=True)]


def their_states(model, texts: list[np.ndarray]) -> list[np.ndarray]:
    """The same of transformers, in one padded batch."""
    length = max(map(len, texts))
    ids = torch.tensor(np.stack([np.pad(text, (0, length - len(text))) for text in texts]))
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    return [row[: len(text)] for row, text in zip(states, texts, strict=True)]


@pytest.mark.parametrize('case', CASES)
def test_states_are_those_of_transformers(models, case):
    model, folder = models(case)
    texts = ids_of()
    expected = their_states(model, texts)
    encoder, mesh = load(folder)
    for mine, theirs in zip(our_states(encoder, mesh, texts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    for text, theirs in zip(texts, expected, strict=True):  # alone, without padding
        np.testing.assert_allclose(our_states(encoder, mesh, [text])[0], theirs, atol=1e-4)
    assert np.abs(expected[0]).max() > 0.3 and np.abs(np.diff(expected[0], axis=0)).max() > 0.1


@pytest.mark.parametrize('case', BOTH_WAYS)
def test_a_causal_family_may_see_the_whole_text(models, case):
    model, folder = models(case)
    texts = ids_of((9, 9))
    encoder, mesh = load(folder, causal=False)
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, 'is_causal'):
            module.is_causal = False
    try:
        expected = their_states(model, texts)
    finally:
        model.config.is_causal = True
        for module in model.modules():
            if hasattr(module, 'is_causal'):
                module.is_causal = True
    for mine, theirs in zip(our_states(encoder, mesh, texts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert np.abs(expected[0] - their_states(model, texts)[0])[0].max() > 1e-3  # the first token sees the others


@pytest.mark.parametrize('case', ['gpt2', 'opt 350m', 'neox', 'gptj', 'llama', 'qwen3, biases', 'bert', *WINDOWED])
@pytest.mark.parametrize('attention', ['masked', 'blocks'])
def test_devices_and_forms_do_not_matter(models, case, attention):
    _, folder = models(case)
    texts = ids_of((9, 5, 9, 3))
    one = our_states(*load(folder), texts)
    several = our_states(*load(folder, (2, 2, 1), attention=attention, layer_loop='scan'), texts)
    for a, b in zip(one, several, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('case', ['gemma3', 'embeddinggemma, odd', 'modernbert'])
def test_windows_in_long_texts(models, case):
    """Of several blocks, in every form: 'interpreted' is the kernel for TPUs."""
    model, folder = models(case)
    texts = ids_of((128, 101))
    expected = their_states(model, texts)
    for sizes, changes in [
        ((1, 1, 1), {'attention': 'blocks', 'layer_loop': 'unroll'}),
        ((1, 2, 1), {'attention': 'masked', 'layer_loop': 'scan', 'remat': 'full'}),
        ((1, 1, 2), {'attention': 'interpreted', 'layer_loop': 'scan'}),
    ]:
        if case == 'embeddinggemma, odd':
            sizes = (1, 1, 1)  # its one key head
        for mine, theirs in zip(our_states(*load(folder, sizes, **changes), texts), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize('case', ['bert', 'llama'])
def test_pooling(models, case):
    model, folder = models(case)
    texts = ids_of((8, 5, 2))
    states = their_states(model, texts)
    for pooling, pooled in [('mean', lambda h: h.mean(0)), ('first', lambda h: h[0]), ('eos', lambda h: h[-1])]:
        encoder, mesh = load(folder, pooling=pooling)
        tokens_1xS, numbers = np.concatenate(texts)[None].astype(np.int32), range(1, 1 + len(texts))
        segments_1xS = np.repeat(numbers, [len(text) for text in texts])[None].astype(np.int32)
        positions_1xS = np.concatenate([np.arange(len(text)) for text in texts])[None].astype(np.int32)
        eos_Bx1 = np.cumsum([len(text) for text in texts])[:, None].astype(np.int32) - 1
        with jax.set_mesh(mesh):
            rows = jax.device_put((tokens_1xS, segments_1xS, positions_1xS, eos_Bx1), batch_sharding(mesh))
            vectors_BxTxD = jax.jit(lambda encoder, *rows: encoder(*rows))(encoder, *rows)
        for mine, theirs in zip(np.asarray(vectors_BxTxD)[:, 0], map(pooled, states), strict=True):
            np.testing.assert_allclose(mine, theirs / np.linalg.norm(theirs), atol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_what_was_read_is_written_to_the_bit(models, case):
    _, folder = models(case)
    encoder, _ = load(folder)
    family = family_of(json.loads((folder / 'config.json').read_text()))
    found, there = dict(written(family, encoder, VOCABULARY)), load_file(folder / 'model.safetensors')
    assert found.keys() == there.keys() - {'pooler.dense.weight', 'pooler.dense.bias'}
    for name, array in found.items():
        assert array.dtype == there[name].dtype and np.array_equal(array, there[name]), name


def test_shards_prefixes_and_heads(models, tmp_path):
    """A file of a language model: bfloat16, in shards, with a prefix and an output head of its own."""
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **SMALL)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size='10KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 3
    encoder, mesh = load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder)} == {jnp.dtype('bfloat16')}
    texts = ids_of()
    expected = their_states(model.model.float(), texts)
    for mine, theirs in zip(our_states(encoder, mesh, texts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    next(tmp_path.glob('model-00002-of-*.safetensors')).unlink()
    with pytest.raises(UserError, match=r'1 of \d+ shards .* are missing, model-00002-of'):
        load(tmp_path)


def test_new_rows_of_the_vocabulary_are_like_the_mean_and_told_apart(models):
    table = np.random.default_rng(0).normal(3, 1, (77, 24)).astype(ml_dtypes.bfloat16)
    rows = grown(table, 128, range(75, 79))
    assert rows.shape == (128, 24)
    np.testing.assert_array_equal(rows[:75], table[:75].astype(np.float32))
    distance = np.abs(rows[75:79] - table.astype(np.float32).mean(0))
    assert 0.05 < distance.mean() < 0.15 and not rows[79:].any()
    assert np.abs(rows[75:79, None] - rows[None, 75:79]).max(-1)[~np.eye(4, dtype=bool)].min() > 0.1


def damaged(folder: Path, tmp_path: Path, change) -> Path:
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    return tmp_path


MISTAKES = {
    'missing': (lambda tensors: tensors.pop('layers.1.mlp.up_proj.weight'), r'missing 1: layers\.1\.mlp\.up_proj\.weight'),
    'unknown': (lambda tensors: tensors.update(extra=np.zeros(1)), r'unknown 1: extra'),
    'another layer': (lambda tensors: tensors.update({'layers.3.mlp.up_proj.weight': np.zeros(1)}), r'unknown 1: layers\.3'),
    'shape': (
        lambda tensors: tensors.update({'layers.2.mlp.up_proj.weight': np.zeros((5, 24), np.float32)}),
        r'model\.safetensors: layers\.2\.mlp\.up_proj\.weight makes feed_forward\.up \[24, 5\], and config\.json tells of \[24, 40\]',
    ),
    'width': (
        lambda tensors: tensors.update({'norm.weight': np.zeros(7, np.float32)}),
        r'norm\.weight makes final_norm\.scale \[7\], .* \[24\]',
    ),
    'heads': (
        lambda tensors: tensors.update({'layers.0.self_attn.q_proj.weight': np.zeros((23, 24), np.float32)}),
        r'q_proj\.weight has shape \[23, 24\]',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_file_that_is_not_what_its_config_says_is_refused_by_name(models, tmp_path, mistake):
    change, line = MISTAKES[mistake]
    with pytest.raises(UserError, match=line):
        load(damaged(models('llama')[1], tmp_path, change))


def test_other_mistakes(models, tmp_path):
    folder = damaged(models('llama')[1], tmp_path, lambda tensors: None)
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r'model\.safetensors: damaged or cut short'):
        load(folder)
    (folder / 'model.safetensors').unlink()
    (folder / 'pytorch_model.bin').write_bytes(b'')
    with pytest.raises(UserError, match=r'holds neither model\.safetensors nor .*; pytorch_model\.bin cannot be read: convert it'):
        load(folder)
    with pytest.raises(UserError, match="model_type='t5' is not supported; known are gpt2, opt, "):
        family_of({'model_type': 't5'})
    config = json.loads((folder / 'config.json').read_text())
    for key, value, line in [
        ('hidden_act', 'gelu', "hidden_act='gelu' is not supported; it must be 'silu'"),
        (
            'rope_parameters',
            {'rope_type': 'longrope'},
            "rope type 'longrope' is not supported; known are 'default', 'linear', 'llama3', 'yarn'",
        ),
        ('rope_parameters', {'rope_type': 'dynamic', 'factor': 2.0}, "rope type 'dynamic' is not supported"),
    ]:
        with pytest.raises(UserError, match=line):
            family_of(config).shape(config | {key: value})


def test_a_sliding_window_is_no_limit_within_it():
    config = json.loads(transformers.MistralConfig(sliding_window=16, num_key_value_heads=2, **SMALL).to_json_string(use_diff=False))
    shape = Shape(vocab_size=VOCABULARY, **family_of(config).shape(config))
    assert shape.max_length == 16 and dataclasses.replace(shape, max_length=8).max_length == 8


def test_a_gemma_that_is_not_ours_is_refused():
    config = json.loads(transformers.Gemma3TextConfig(**GEMMA).to_json_string(use_diff=False))
    for key, value, line in [
        ('attn_logit_softcapping', 50.0, 'attn_logit_softcapping=50.0 is not supported; it must be None'),
        ('final_logit_softcapping', 30.0, 'final_logit_softcapping=30.0 is not supported; it must be None'),
        ('hidden_activation', 'relu', "hidden_activation='relu' is not supported"),
        ('sliding_window', None, 'sliding_window=None is not supported where a layer'),
        (
            'layer_types',
            [FULL, 'chunked_attention', LOCAL],
            'layer_types must be full_attention or sliding_attention for each of 3',
        ),
    ]:
        with pytest.raises(UserError, match=line):
            family_of(config).shape(config | {key: value})


# As transformers 4 wrote them; the parts that tell of layers.
GEMMA_1B = {
    'model_type': 'gemma3_text', 'hidden_size': 1152, 'intermediate_size': 6912, 'num_hidden_layers': 26, 'num_attention_heads': 4,
    'num_key_value_heads': 1, 'head_dim': 256, 'max_position_embeddings': 32768, 'query_pre_attn_scalar': 256, 'rope_theta': 1000000,
    'rope_local_base_freq': 10000, 'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}, 'sliding_window': 512,
    'sliding_window_pattern': 6, 'attn_logit_softcapping': None, 'final_logit_softcapping': None, 'vocab_size': 262144,
}  # fmt: skip
MODERN_BASE = {
    'model_type': 'modernbert', 'hidden_size': 768, 'intermediate_size': 1152, 'num_hidden_layers': 22, 'num_attention_heads': 12,
    'max_position_embeddings': 8192, 'global_attn_every_n_layers': 3, 'global_rope_theta': 160000.0, 'local_rope_theta': 10000.0,
    'local_attention': 128, 'norm_bias': False, 'norm_eps': 1e-5, 'mlp_bias': False, 'attention_bias': False, 'classifier_pooling': 'mean',
}  # fmt: skip


@pytest.mark.parametrize('old', [GEMMA_1B, GEMMA_1B | {'use_bidirectional_attention': True}, MODERN_BASE], ids=str)
def test_configs_of_transformers_4_are_those_of_5(old):
    """Which reads them, and writes them anew."""
    read = getattr(transformers, f'{"Gemma3Text" if "gemma" in old["model_type"] else "ModernBert"}Config')(**old)
    new = json.loads(read.to_json_string(use_diff=False))
    assert 'layer_types' in new and 'rope_theta' not in new and 'global_rope_theta' not in new
    ours = family_of(old).shape(old)
    assert ours == family_of(new).shape(new)
    shape = Shape(vocab_size=VOCABULARY, **ours)
    assert shape.local_layers == tuple(kind == LOCAL for kind in read.layer_types) and len(set(shape.local_layers)) == 2
    # Both ways transformers' Gemma excludes what is a window away, and its ModernBERT includes it.
    assert shape.reach == read.sliding_window - ('gemma' in old['model_type'])
    assert shape.rotary_base == read.rope_parameters[FULL]['rope_theta'] > 10 * shape.local_rotary_base == 100_000
