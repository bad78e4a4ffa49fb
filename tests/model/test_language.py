"""Losses of next tokens: those of transformers, in packed rows as for each text alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cpt_jax.errors import UserError
from cpt_jax.mesh import batch_sharding, make_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.files import Files
from cpt_jax.model.families.known import family_of
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.language import token_losses
from cpt_jax.model.shape import Shape
from tests.model.test_families import GPT, OPT, SMALL, VOCABULARY

torch = pytest.importorskip('torch', reason='transformers is the oracle (requirements-dev.txt)')
transformers = pytest.importorskip('transformers')

CASES = {
    'gpt2': ('GPT2LMHead', 'GPT2', GPT),
    'llama': ('LlamaForCausalLM', 'Llama', SMALL | {'num_key_value_heads': 2, 'tie_word_embeddings': True}),
    'opt 350m': ('OPTForCausalLM', 'OPT', OPT | {'word_embed_proj_dim': 10, 'do_layer_norm_before': False}),
}


def packed(texts: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens_RxS, segments_RxS, positions_RxS: texts in their order, as many in a row as fit; padding behind and between them."""
    rows: list[list[np.ndarray]] = [[]]
    for text in texts:
        if sum(map(len, rows[-1])) + len(text) > length:
            rows.append([])
        rows[-1].append(text)
    tokens_RxS, segments_RxS, positions_RxS = np.zeros((3, len(rows), length), np.int32)
    for row, content in enumerate(rows):
        filled = np.concatenate(content)
        tokens_RxS[row, : len(filled)] = filled
        segments_RxS[row, : len(filled)] = np.repeat(np.arange(len(content)) + 1, [len(text) for text in content])
        positions_RxS[row, : len(filled)] = np.concatenate([np.arange(len(text)) for text in content])
    return tokens_RxS, segments_RxS, positions_RxS


def their_losses(model, text: np.ndarray) -> np.ndarray:
    """float32[length] of transformers' model for one text: 0, and that of each token after those before it."""
    ids = torch.tensor(text[None].astype(np.int64))
    with torch.no_grad():
        logits = model(ids).logits[0]
    after = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction='none').numpy()
    return np.concatenate([np.zeros(1, np.float32), after])


def losses(encoder: Encoder, mesh: jax.sharding.Mesh, rows) -> np.ndarray:
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(token_losses)(encoder, *jax.device_put(rows, batch_sharding(mesh))))


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """{case: (transformers' model, shape, loader)}, made when asked for."""
    made = {}

    def make(case: str):
        if case not in made:
            name, config, sizes = CASES[case]
            kind = f'{name}Model' if name.endswith('Head') else name
            config = getattr(transformers, f'{config}Config')(vocab_size=VOCABULARY, **sizes)
            torch.manual_seed(0)
            model = getattr(transformers, kind)(config).eval()
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.2 * torch.randn_like(weight))
            folder = tmp_path_factory.mktemp('language')
            model.save_pretrained(folder)
            told = json.loads((folder / 'config.json').read_text())
            family = family_of(told)
            assert told.get('tie_word_embeddings', family.tied)
            shape = Shape(vocab_size=VOCABULARY, **family.shape(told) | {'remat': 'none'}).on('cpu')
            made[case] = model, shape, lambda shape, mesh: load_encoder(family, Files(folder), shape, mesh)
        return made[case]

    return make


@pytest.mark.parametrize('case', CASES)
def test_losses_are_those_of_transformers_packed_or_alone(models, case):
    model, shape, load = models(case)
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load(shape, mesh)
    random = np.random.default_rng(0)
    texts = [random.integers(0, VOCABULARY, length) for length in (13, 7, 1, 2, 18, 3)]
    rows = packed(texts, 23)
    found_RxS = losses(encoder, mesh, rows)
    assert found_RxS.dtype == np.float32 and len(found_RxS) == 2 and not found_RxS[rows[1] == 0].any()
    expected = [their_losses(model, text) for text in texts]
    np.testing.assert_allclose(found_RxS[rows[1] > 0], np.concatenate(expected), atol=1e-4)
    for text, right in list(zip(texts, expected, strict=True))[1:4]:
        np.testing.assert_allclose(losses(encoder, mesh, packed([text], len(text)))[0], right, atol=1e-4)
    assert np.concatenate(expected).std() > 0.3


def test_devices_and_poolings_do_not_matter(models):
    _, shape, load = models('llama')
    random = np.random.default_rng(0)
    rows = packed([random.integers(0, VOCABULARY, length) for length in (130, 129, 128, 100)], 130)
    shape = dataclasses.replace(shape, max_length=130)
    one, several = make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)
    expected = losses(load(shape, one), one, rows)
    changed = dataclasses.replace(shape, pooling='mean', attention='masked', layer_loop='scan', remat='full')
    np.testing.assert_allclose(losses(load(changed, several), several, rows), expected, atol=1e-4)


def test_what_has_no_such_losses_is_refused(models):
    _, shape, load = models('llama')
    mesh = make_mesh(devices=jax.devices()[:1])
    rows = packed([np.arange(5)], 5)
    for change, line in [({'tied': False}, 'need tie_word_embeddings'), ({'causal': False}, 'need a causal model')]:
        with pytest.raises(UserError, match=line):
            losses(load(dataclasses.replace(shape, **change), mesh), mesh, rows)
