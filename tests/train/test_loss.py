"""The loss against ten lines of float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cpt_jax.errors import UserError
from cpt_jax.mesh import BATCH, make_mesh
from cpt_jax.train.loss import InfoNCE


def reference(e_BxTxD, ids_BxT, log_scale, symmetric):
    """Float64, one device, loops: what the words of cpt_jax/train/loss.py say."""
    e, ids = np.asarray(e_BxTxD, np.float64), np.asarray(ids_BxT)
    there = np.flatnonzero(ids[:, 0] > 0)
    losses = []
    for i in there:
        keep = [j for j in there if j == i or (ids[j, 0] != ids[i, 0] and ids[j, 1] != ids[i, 1])]
        hard = [e[j, t] for j in there for t in range(2, ids.shape[1]) if ids[j, t] > 0 and ids[j, t] != ids[i, 1]]
        forward = np.exp(log_scale) * np.array([e[i, 0] @ e[j, 1] for j in keep] + [e[i, 0] @ h for h in hard])
        backward = np.exp(log_scale) * np.array([e[j, 0] @ e[i, 1] for j in keep])
        own = np.exp(log_scale) * (e[i, 0] @ e[i, 1])
        both = [np.logaddexp.reduce(forward) - own, np.logaddexp.reduce(backward) - own]
        losses.append(np.mean(both) if symmetric else both[0])
    return np.mean(losses)


def example(texts: int, seed: int = 0):
    random = np.random.default_rng(seed)
    e = random.normal(size=(16, texts, 24))
    e[:, 1] += 0.7 * e[:, 0]
    ids = 1 + np.arange(16 * texts).reshape(16, texts)
    ids[3, 0] = ids[9, 0]  # the same query twice
    ids[4, 1] = ids[12, 1]  # the same positive twice
    ids[7] = 0  # a pair that did not fit into its rows
    if texts > 2:
        ids[5, 2] = ids[2, 1]  # a hard negative that is another anchor's positive
        ids[6, 2] = 0  # a pair with fewer hard negatives
    return (e / np.linalg.norm(e, axis=-1, keepdims=True)).astype(np.float32), ids.astype(np.int32)


def place(array, mesh):
    return jax.device_put(array, jax.NamedSharding(mesh, P(BATCH)))


def numeric_gradient(function, array, places, step=1e-5):
    """Central differences in float64 at some places."""
    out = []
    for place in places:
        plus, minus = np.array(array, np.float64), np.array(array, np.float64)
        plus[place] += step
        minus[place] -= step
        out.append((function(plus) - function(minus)) / (2 * step))
    return np.array(out)


@pytest.mark.parametrize('sizes', [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize(('texts', 'symmetric', 'scale'), [(2, True, 1.0), (2, True, 100.0), (3, True, 20.0), (6, False, 20.0)])
def test_value_and_gradient_are_the_references(sizes, texts, symmetric, scale):
    e, ids = example(texts)
    log_scale = np.float32(np.log(scale))
    loss = InfoNCE(symmetric=symmetric)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(lambda e, ids, s: loss(e, ids, s)[0], argnums=(0, 2)))
        value, (e_gradient, scale_gradient) = jax.device_get(run(place(e, mesh), place(ids, mesh), jnp.float32(log_scale)))
    # A float32 logit is a multiple of 2**-24 of its size, which is up to `scale`, before anything is summed.
    np.testing.assert_allclose(value, reference(e, ids, float(log_scale), symmetric), rtol=2e-6, atol=scale * 2**-24)
    # Float32 logits of up to 100 carry 4e-6 each, which is the error of a gradient of size `scale`.
    places = [(0, 0, 0), (3, 0, 5), (4, 1, 7), (9, 1, 2), (7, 0, 1), (15, texts - 1, 23)]
    expected = numeric_gradient(lambda e: reference(e, ids, float(log_scale), symmetric), e, places)
    np.testing.assert_allclose([e_gradient[place] for place in places], expected, rtol=1e-4, atol=1e-6 * scale)
    expected = numeric_gradient(lambda s: reference(e, ids, float(s[0]), symmetric), np.array([log_scale]), [(0,)])
    np.testing.assert_allclose(scale_gradient, expected[0], rtol=1e-4, atol=1e-6)


def run_loss(e, ids, log_scale=0.0, sizes=(8, 1, 1)):
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(InfoNCE())(place(e, mesh), place(ids, mesh), jnp.float32(log_scale)))


def test_equal_vectors_give_the_logarithm_of_the_batch():
    e = np.ones((16, 2, 4), np.float32) / 2
    value, metrics = run_loss(e, np.arange(1, 33, dtype=np.int32).reshape(16, 2), 3.0)
    np.testing.assert_allclose(value, np.log(16), rtol=1e-6)
    np.testing.assert_allclose(metrics['log_batch'], np.log(16), rtol=1e-6)
    np.testing.assert_allclose((metrics['positive_cosine'], metrics['negative_cosine']), 1, rtol=1e-6)
    assert (metrics['accuracy_xy'], metrics['accuracy_yx']) == (0, 0)


def test_orthogonal_partners_with_hard_negatives_give_no_loss():
    """Trap T5: with P and N gathered in another order than the labels think, this is large."""
    e = np.zeros((8, 4, 32), np.float32)
    for pair in range(8):
        e[pair, 0, pair] = e[pair, 1, pair] = e[pair, 2, 8 + pair] = e[pair, 3, 16 + pair] = 1
    value, metrics = run_loss(e, np.arange(1, 33, dtype=np.int32).reshape(8, 4), np.log(100))
    assert value < 1e-6
    assert (metrics['accuracy_xy'], metrics['accuracy_yx'], metrics['positive_cosine']) == (1, 1, 1)


def test_accuracy_counts_nearest_partners():
    e, ids = example(2)
    _, metrics = run_loss(e, ids)
    there = ids[:, 0] > 0
    cosine = np.where(there[None] & there[:, None], e[:, 0] @ e[:, 1].T, -9)
    for i, j in [(3, 9), (9, 3), (4, 12), (12, 4)]:
        cosine[i, j] = -9
    right = np.arange(16) == cosine.argmax(1), np.arange(16) == cosine.argmax(0)
    np.testing.assert_allclose([metrics['accuracy_xy'], metrics['accuracy_yx']], [side[there].mean() for side in right], rtol=1e-6)
    np.testing.assert_allclose(metrics['positive_cosine'], np.diagonal(e[:, 0] @ e[:, 1].T)[there].mean(), rtol=1e-5)
    assert metrics['pairs'] == 15


def test_a_batch_that_the_whole_mesh_does_not_divide_is_split_over_its_rows_alone():
    e, ids = example(2)
    np.testing.assert_allclose(run_loss(e[:4], ids[:4], 2.0, (2, 2, 2))[0], reference(e[:4], ids[:4], 2.0, True), rtol=1e-6)


def test_an_unknown_form_is_refused():
    with pytest.raises(UserError, match='loss.form=.*choose one of dense'):
        InfoNCE(form='ring')
