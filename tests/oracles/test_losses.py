"""The losses of the second stage against those of sentence-transformers, at equal settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    DistillKLDivLoss,
    EmbedDistillLoss,
    MarginMSELoss,
    gist_embed,
)

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.loss.targets import Targets
from cpt_jax.loss.term_inputs import TermInputs
from cpt_jax.loss.terms import TARGET_TERMS
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
        (value, metrics), gradient = run(*arrays, Targets(place(guide, mesh) if guided else None))
    assert 0.02 < float(metrics['masked_negatives']) < 0.6
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    # torch's gradient is along the sphere, because its cosine normalizes.
    gradient = np.array(gradient)
    gradient -= np.sum(gradient * e, -1, keepdims=True) * e
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-5)


def compute_term(name, e, targets, temperature=1.0, teacher_temperature=1.0, teacher_map=None):
    """Returns a term and its gradient with respect to the vectors."""
    mesh = make_mesh(devices=jax.devices()[:1])
    ids = make_ids(e.shape[1])

    def compute(e):
        scale = jnp.float32(1 / temperature)
        inputs = TermInputs(e, ids, scale, targets, teacher_temperature, teacher_map)
        return TARGET_TERMS[name].compute(inputs)

    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(jax.value_and_grad(compute))(jnp.asarray(e)))


def check_equal(found, expected, tensor):
    value, gradient = found
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-5)


def make_scores(columns: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(16, columns)).astype(np.float32)


def test_margin_mse_equals_theirs():
    e, scores = make_vectors(5), make_scores(4)
    tensor, columns = to_columns(e)
    loss = MarginMSELoss('model')
    expected = loss.compute_loss_from_embeddings(columns, torch.tensor(scores))
    check_equal(compute_term('margin_mse', e, Targets(scores=scores)), expected, tensor)


def test_kl_equals_theirs():
    """Theirs is multiplied by the square of the student's temperature."""
    e, scores = make_vectors(5), make_scores(4)
    for temperature, teacher_temperature in [(1.0, 1.0), (0.5, 2.0)]:
        tensor, columns = to_columns(e)
        loss = DistillKLDivLoss(
            'model',
            student_temperature=temperature,
            teacher_temperature=teacher_temperature,
        )
        theirs = loss.compute_loss_from_embeddings(columns, torch.tensor(scores))
        found = compute_term('kl', e, Targets(scores=scores), temperature, teacher_temperature)
        check_equal(found, theirs / temperature**2, tensor)


def test_cosent_equals_theirs():
    e, scores = make_vectors(2), np.round(make_scores(1))
    tensor, columns = to_columns(e)
    theirs = CoSENTLoss('model', scale=20.0).compute_loss_from_embeddings(
        columns, torch.tensor(scores)
    )
    found = compute_term('cosent', e, Targets(scores=scores), temperature=0.05)
    theirs.backward()
    np.testing.assert_allclose(found[0], theirs.item(), rtol=1e-5)
    # torch's gradient is along the sphere, because its cosine normalizes.
    along = found[1] - np.sum(found[1] * e, -1, keepdims=True) * e
    np.testing.assert_allclose(along, tensor.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize('metric', ['cosine', 'mse'])
def test_vector_distillation_equals_theirs(metric):
    e = make_vectors(3)
    teacher = make_guide(3)
    teacher_map = np.random.default_rng(6).normal(size=(24, 6)).astype(np.float32)
    tensor, columns = to_columns(e)
    loss = EmbedDistillLoss('model', distance_metric=metric)
    if metric == 'mse':
        loss.projection = torch.nn.Linear(24, 6, bias=False)
        loss.projection.weight.data = torch.tensor(teacher_map.T)
    else:
        teacher = make_vectors(3)[::-1].copy()
    theirs = loss.compute_loss_from_embeddings(columns, to_columns(teacher)[1])
    found = compute_term(f'teacher_{metric}', e, Targets(teacher=teacher), teacher_map=teacher_map)
    theirs.backward()
    gradient = found[1]
    if metric == 'cosine':
        gradient = gradient - np.sum(gradient * e, -1, keepdims=True) * e
    np.testing.assert_allclose(found[0], theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-5)
