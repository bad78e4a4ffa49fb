"""Adapters against PEFT, in both directions, and merged against unmerged."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cpt_jax.base_model import put_base
from cpt_jax.errors import UserError
from cpt_jax.export.adapter import adapters_of
from cpt_jax.mesh import batch_sharding, make_mesh, on_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.files import Files
from cpt_jax.model.families.known import family_of
from cpt_jax.model.families.load import load_encoder, written
from cpt_jax.model.families.peft import AdaptedFiles, write_adapter
from cpt_jax.model.lora import MATRICES, LoRA
from cpt_jax.model.parameter import divided, joined
from cpt_jax.model.shape import Shape
from cpt_jax.pretrained import is_pretrained

torch = pytest.importorskip('torch', reason='peft is the oracle (requirements-dev.txt)')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {'num_hidden_layers': 2, 'num_attention_heads': 4, 'hidden_size': 64, 'vocab_size': 77, 'max_position_embeddings': 40}
CASES = {
    'llama': (
        'Llama',
        SIZES | {'intermediate_size': 128, 'num_key_value_heads': 2},
        ['q_proj', 'v_proj', 'o_proj', 'gate_proj', 'down_proj'],
    ),
    'opt': ('OPT', SIZES | {'ffn_dim': 128, 'word_embed_proj_dim': 64}, ['k_proj', 'out_proj', 'fc1', 'fc2']),
    'gpt2': ('GPT2', {'n_embd': 64, 'n_layer': 2, 'n_head': 4, 'n_positions': 40, 'vocab_size': 77}, ['c_attn', 'c_proj', 'c_fc']),
}
LENGTHS = 11, 7


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    """{case: (directory, family, config, shape)} of models of transformers, made when asked for."""
    made = {}

    def make(case: str):
        if case not in made:
            name, sizes, _ = CASES[case]
            torch.manual_seed(0)
            model = getattr(transformers, f'{name}Model')(getattr(transformers, f'{name}Config')(**sizes)).eval()
            folder = tmp_path_factory.mktemp(case)
            model.save_pretrained(folder)
            config = json.loads((folder / 'config.json').read_text())
            family = family_of(config)
            made[case] = folder, family, config, Shape(vocab_size=77, remat='full', **family.shape(config)).on('cpu')
        return made[case]

    return make


def loaded(files: Files, family, shape: Shape, lora: LoRA | None = None) -> Encoder:
    return load_encoder(family, files, shape, make_mesh(devices=jax.devices()[:1]), jnp.float32, lora=lora)


def adapted(bases, case: str, lora: LoRA) -> Encoder:
    """A base beside adapters that are not at their beginning."""
    folder, family, _, shape = bases(case)
    random, mesh = np.random.default_rng(1), make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        trained, frozen = divided(on_mesh(jax.eval_shape(lambda: lora.adapted(Encoder(shape, nnx.Rngs(0)), nnx.Rngs(0))), mesh))
        trained = jax.tree.map(lambda w: jax.device_put(random.normal(0, 0.2, w.shape).astype(np.float32), w.sharding), trained)
    return joined(trained, put_base(frozen, loaded(Files(folder), family, shape, lora)))


_states = jax.jit(lambda encoder, *rows: encoder.states(*rows))  # one program for all encoders of a form


def states(encoder: Encoder) -> np.ndarray:
    """[2, D]: at the ends of two texts, a row each."""
    length = max(LENGTHS)
    tokens = np.random.default_rng(2).integers(5, 77, (2, length)).astype(np.int32)
    segments = (np.arange(length) < np.array(LENGTHS)[:, None]).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    ends = (np.arange(2)[:, None] * length + np.array(LENGTHS)[:, None] - 1).astype(np.int32)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        rows = [jax.device_put(array, batch_sharding(mesh)) for array in (tokens, segments, positions, ends)]
        return np.asarray(_states(encoder, *rows))[:, 0]


def theirs(model) -> np.ndarray:
    tokens = torch.tensor(np.random.default_rng(2).integers(5, 77, (2, max(LENGTHS))))
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return np.stack([out[i, length - 1].numpy() for i, length in enumerate(LENGTHS)])


@pytest.mark.parametrize('case', ['llama', 'opt'])
def test_peft_computes_the_same_from_our_adapter(bases, case, tmp_path):
    folder, family, _, shape = bases(case)
    lora = LoRA(rank=4, alpha=8.0, dropout=0.3)
    encoder = adapted(bases, case, lora)
    config = {'base_model_name_or_path': str(folder), 'r': 4, 'lora_alpha': 8.0, 'lora_dropout': 0.3}
    write_adapter(tmp_path, family, shape, config, adapters_of(encoder, lora))
    base = transformers.AutoModel.from_pretrained(folder)
    alone = theirs(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    targets = [name for name in MATRICES if name != 'gate' or shape.gated]
    assert sum(name.endswith('lora_A.default') for name, _ in model.named_modules()) == 2 * len(targets)  # none was passed over
    ours = states(encoder)
    np.testing.assert_allclose(ours, theirs(model), atol=1e-4)
    assert np.abs(ours - alone).max() > 0.05
    # Our own reader merges it.
    np.testing.assert_allclose(states(loaded(AdaptedFiles(Files(folder), family, tmp_path), family, shape)), ours, atol=1e-4)
    # Before the first step it is the base; of OPT the keys of the last layer are then folded into queries, other sums of the same.
    trained, frozen = divided(encoder)
    clear = lambda path, a: jnp.zeros_like(a) if 'lora_b' in jax.tree_util.keystr(path) else a  # noqa: E731
    fresh = joined(jax.tree_util.tree_map_with_path(clear, trained), frozen)
    np.testing.assert_allclose(states(fresh), states(loaded(Files(folder), family, shape)), atol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_we_compute_the_same_from_an_adapter_of_peft(bases, case, tmp_path):
    folder, family, _, shape = bases(case)
    targets = CASES[case][2]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, fan_in_fan_out=case == 'gpt2', alpha_pattern={targets[1]: 3}, use_rslora=case == 'opt'
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(transformers.AutoModel.from_pretrained(folder), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'lora_B' in name:
                weight.normal_(0, 0.2)
    model.eval().save_pretrained(tmp_path)
    assert is_pretrained(str(tmp_path))
    found = states(loaded(AdaptedFiles(Files(folder), family, tmp_path), family, shape))
    np.testing.assert_allclose(found, theirs(model), atol=1e-4)


def test_merged_is_unmerged(bases, tmp_path):
    folder, family, _, shape = bases('llama')
    encoder = adapted(bases, 'llama', LoRA(rank=4, base='nf4'))
    tensors = {name: np.ascontiguousarray(array) for name, array in written(family, encoder, 77)}
    save_file(tensors, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    ours = states(encoder)
    np.testing.assert_allclose(states(loaded(Files(tmp_path), family, shape)), ours, atol=1e-5)
    assert np.abs(ours - states(loaded(Files(folder), family, shape))).max() > 0.05


def test_adapters_begin_as_those_of_peft(bases):
    """A within 1 / sqrt(inputs), evenly; B zero. A target that is not named has none."""
    shape = bases('opt')[3]
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        make = lambda: LoRA(rank=16, targets=('down', 'out')).adapted(Encoder(shape, nnx.Rngs(0)), nnx.Rngs(1))  # noqa: E731
        assert not hasattr(jax.eval_shape(make).last.attention, 'query_adapter')
        a, b = jax.jit(lambda: (make().last.feed_forward.down_adapter.lora_a[...], make().blocks.attention.out_adapter.lora_b[...]))()
    assert a.shape == (128, 16) and 0.95 < np.abs(a).max() * 128**0.5 <= 1
    np.testing.assert_allclose(np.std(a), 128**-0.5 / 3**0.5, rtol=0.05)
    assert b.shape == (1, 16, 64) and not np.any(b)


@pytest.mark.parametrize(
    ('keys', 'said'),
    [
        ({'rank': -1}, r'lora\.rank=-1'),
        ({'rank': 4, 'alpha': 0}, r'lora\.alpha=0'),
        ({'rank': 4, 'dropout': 1.0}, r'lora\.dropout=1\.0'),
        ({'rank': 4, 'targets': ['query', 'q_proj']}, r'lora\.targets=.*choose one or more of query, key'),
        ({'rank': 4, 'targets': ()}, r'lora\.targets=\[\]'),
        ({'rank': 4, 'base': 'fp4'}, r'lora\.base=.fp4.: choose one of float32, bfloat16, nf4, int8'),
        ({'base': 'nf4'}, r'lora\.base=nf4 with lora\.rank=0'),
    ],
)
def test_what_makes_no_sense_is_refused(keys, said):
    with pytest.raises(UserError, match=said):
        LoRA(**keys)


def test_what_does_not_fit_the_model_or_the_mesh_is_refused(bases, meshes):
    shape = dataclasses.replace(bases('llama')[3], remat='full')
    LoRA(rank=4, base='nf4').check(shape, meshes[8, 1, 1])
    with pytest.raises(UserError, match=r'1 blocks of 64 inputs \(model\.width=64\) .* mesh\.fsdp=8; set mesh\.fsdp=1 and mesh\.data=-1'):
        LoRA(rank=4, base='nf4').check(shape, meshes[1, 8, 1])
    with pytest.raises(UserError, match=r'2 blocks of 64 inputs \(model\.hidden=128\) .* mesh\.tensor=8; set mesh\.tensor=2'):
        LoRA(rank=4, base='nf4').check(shape, meshes[1, 1, 8])
    with pytest.raises(UserError, match=r'model\.hidden=100 is no multiple; use bfloat16 or int8'):
        LoRA(rank=4, base='nf4').check(dataclasses.replace(shape, hidden=100), meshes[8, 1, 1])
    with pytest.raises(UserError, match=r'model\.remat=none would keep'):
        LoRA(rank=4, base='int8').check(dataclasses.replace(shape, remat='none'), meshes[8, 1, 1])
    with pytest.raises(UserError, match=r'has none of them'):
        LoRA(rank=4, targets=('gate',)).check(bases('opt')[3], meshes[8, 1, 1])


def test_what_peft_has_no_form_for_is_refused(bases, tmp_path):
    _, family, _, shape = bases('gpt2')
    with pytest.raises(UserError, match=r'query is a part of h\.0\.attn\.c_attn\.weight, for which PEFT has one adapter'):
        write_adapter(tmp_path, family, shape, {}, {'attention.query': []})


def test_adapters_that_are_more_than_lora_are_refused(bases, tmp_path):
    folder, family, _, _ = bases('llama')
    write_adapter(tmp_path, family, bases('llama')[3], {'base_model_name_or_path': str(folder), 'lora_alpha': 1}, {})

    def opened(**keys) -> None:
        config = json.loads((tmp_path / 'adapter_config.json').read_text())
        (tmp_path / 'adapter_config.json').write_text(json.dumps(config | keys))
        AdaptedFiles(Files(folder), family, tmp_path)

    opened()
    for key, value in {'use_dora': True, 'init_lora_weights': 'pissa', 'bias': 'all', 'peft_type': 'IA3'}.items():
        with pytest.raises(UserError, match=f'adapter_config.json: not supported: .*{key}='):
            opened(**{key: value})
        opened(**{key: {'peft_type': 'LORA', 'bias': 'none'}.get(key)})
    path: Path = tmp_path / 'adapter_model.safetensors'
    save_file(load_file(path) | {'base_model.model.layers.9.mlp.up_proj.lora_A.weight': np.zeros((1, 64), np.float32)}, path)
    with pytest.raises(UserError, match=r'layers\.9\.mlp\.up_proj\.lora_A\.weight is no LoRA of a linear layer'):
        opened()
