"""The losses of the second stage against those of sentence-transformers, at equal settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import gist_embed

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runtime.mesh import make_mesh
from tests.loss.test_false_negatives import make_guide
from tests.loss.test_infonce import place

TEMPERATURE = 0.2


def make_vectors(texts: int = 3) -> np.ndarray:
    """Returns unit vectors of 16 pairs with a hard negative each, float32[16, T, 24]."""
    e = np.random.default_rng(2).normal(size=(16, texts, 24))
    e[:, 1] += 0.7 * e[:, 0]
    return (e / np.linalg.norm(e, axis=-1, keepdims=True)).astype(np.float32)


def make_ids(texts: int = 3) -> np.ndarray:
    """Returns ids of texts that are all different."""
    return 1 + np.arange(16 * texts * 2, dtype=np.int32).reshape(16, texts, 2)


def to_columns(e: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns the vectors as a tensor with gradient, and its columns."""
    tensor = torch.tensor(e, requires_grad=True)
    return tensor, [tensor[:, t] for t in range(e.shape[1])]


class GivenVectors(gist_embed.GISTEmbedLoss):
    """GISTEmbedLoss of given vectors instead of two models."""

    def __init__(self, **settings):
        torch.nn.Module.__init__(self)
        self.model, self.guide, self.must_retokenize = 'model', 'guide', False
        self.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
        self.cross_entropy_loss = torch.nn.CrossEntropyLoss()
        self.gather_across_devices = False
        vars(self).update(settings)


@pytest.mark.parametrize('guided', [False, True])
@pytest.mark.parametrize('strategy', ['absolute', 'relative'])
def test_margin_mask_equals_gist(monkeypatch, strategy, guided):
    """GISTEmbedLoss subtracts the margin. The negatives among queries and among documents, which
    InfoNCE does not have, are switched off.
    """
    e, guide = make_vectors(), make_guide(3)
    tensor, columns = to_columns(e)
    guide_columns = to_columns(guide)[1] if guided else columns
    vectors = {'model': columns, 'guide': guide_columns}
    monkeypatch.setattr(gist_embed, 'embed_columns', lambda model, features: vectors[model])
    loss = GivenVectors(
        temperature=TEMPERATURE,
        margin_strategy=strategy,
        margin=0.2,
        contrast_anchors=False,
        contrast_positives=False,
    )
    expected = loss([{}], None)
    expected.backward()
    ours = InfoNCE(
        symmetric=False,
        mask_margin=-0.2,
        mask_relative=strategy == 'relative',
        guide='vectors' if guided else '',
    )
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        arrays = place(e, mesh), place(make_ids(), mesh), jnp.float32(-np.log(TEMPERATURE))
        run = jax.jit(jax.value_and_grad(ours, has_aux=True))
        (value, metrics), gradient = run(*arrays, place(guide, mesh) if guided else None)
    assert 0.02 < float(metrics['masked_negatives']) < 0.6
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    # torch's gradient is along the sphere, because its cosine normalizes.
    gradient = np.array(gradient)
    gradient -= np.sum(gradient * e, -1, keepdims=True) * e
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-5)
