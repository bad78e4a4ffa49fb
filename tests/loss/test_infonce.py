"""The loss against ten lines of float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, make_mesh


def reference(e_BxTxD, ids_BxT, log_scale, symmetric):
    """Float64, one device, loops: what the words of cpt_jax/loss/candidates.py say."""
    e, ids = np.asarray(e_BxTxD, np.float64), np.asarray(ids_BxT)
    there = np.flatnonzero(ids[:, 0] > 0)
    losses = []
    for i in there:
        keep = [j for j in there if j == i or (ids[j, 0] != ids[i, 0] and ids[j, 1] != ids[i, 1])]
        hard = [
            e[j, t]
            for j in there
            for t in range(2, ids.shape[1])
            if ids[j, t] > 0 and ids[j, t] != ids[i, 1]
        ]
        forward = np.exp(log_scale) * np.array(
            [e[i, 0] @ e[j, 1] for j in keep] + [e[i, 0] @ h for h in hard]
        )
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


PLACES = [(0, 0, 0), (3, 0, 5), (4, 1, 7), (9, 1, 2), (7, 0, 1)]


@functools.cache
def expected_of(texts: int, symmetric: bool, scale: float):
    """The reference's value for `example(texts)`, its gradient at PLACES, and that of the log
    scale: the same for every form and mesh.
    """
    e, ids = example(texts)
    log_scale = np.float32(np.log(scale))
    places = [*PLACES, (15, texts - 1, 23)]
    return (
        reference(e, ids, float(log_scale), symmetric),
        numeric_gradient(lambda e: reference(e, ids, float(log_scale), symmetric), e, places),
        numeric_gradient(
            lambda s: reference(e, ids, float(s[0]), symmetric), np.array([log_scale]), [(0,)]
        ),
    )


@functools.cache
def value_and_gradient(form: tuple, symmetric: bool):
    """One program for all scales."""
    loss = InfoNCE(symmetric=symmetric, **dict(form))
    return jax.jit(jax.value_and_grad(lambda e, ids, s: loss(e, ids, s)[0], argnums=(0, 2)))


FORMS = pytest.mark.parametrize(
    'form',
    [{'form': 'dense'}, {'form': 'chunked', 'chunks': 2}, {'form': 'chunked', 'chunks': 3}],
    ids=str,
)


@FORMS
@pytest.mark.parametrize('sizes', [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize(
    ('texts', 'symmetric', 'scale'),
    [
        (2, True, 1.0),
        (2, True, 100.0),
        (3, True, 20.0),
        (6, False, 20.0),
        (6, True, 100.0),
        (2, False, 1.0),
    ],
)
def test_value_and_gradient_are_the_references(form, sizes, texts, symmetric, scale):
    e, ids = example(texts)
    log_scale = np.float32(np.log(scale))
    run = value_and_gradient((*form.items(),), symmetric)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        value, (e_gradient, scale_gradient) = jax.device_get(
            run(place(e, mesh), place(ids, mesh), jnp.float32(log_scale))
        )
    # A float32 logit is a multiple of 2**-24 of its size, which is up to `scale`, before anything
    # is summed.
    expected, expected_gradient, expected_scale_gradient = expected_of(texts, symmetric, scale)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=scale * 2**-24)
    # Float32 logits of up to 100 carry 4e-6 each, which is the error of a gradient of size `scale`.
    places = [*PLACES, (15, texts - 1, 23)]
    np.testing.assert_allclose(
        [e_gradient[place] for place in places], expected_gradient, rtol=1e-4, atol=1e-6 * scale
    )
    np.testing.assert_allclose(scale_gradient, expected_scale_gradient[0], rtol=1e-4, atol=1e-6)


def run_form(e, ids, mesh, log_scale=3.0, **settings):
    """(value, metrics), (gradient of e, of the log scale)."""
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(InfoNCE(**settings), argnums=(0, 2), has_aux=True))
        return jax.device_get(run(place(e, mesh), place(ids, mesh), jnp.float32(log_scale)))


@pytest.mark.parametrize('texts', [2, 6])
def test_the_forms_agree_in_every_number(texts, meshes):
    """All places of the gradient, all metrics, and uneven chunks."""
    e, ids = example(texts)
    (value, metrics), gradients = run_form(e, ids, meshes[2, 2, 2])
    for chunks in (1, 2, 5):
        (other, others), (e_gradient, scale_gradient) = run_form(
            e, ids, meshes[2, 2, 2], form='chunked', chunks=chunks
        )
        np.testing.assert_allclose(other, value, rtol=2e-6)
        np.testing.assert_allclose(e_gradient, gradients[0], atol=2e-6)
        np.testing.assert_allclose(scale_gradient, gradients[1], rtol=1e-5, atol=1e-6)
        assert others.keys() == metrics.keys()
        for name in metrics:
            np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('form', ['dense', 'chunked'])
def test_bfloat16_vectors_are_compared_in_float32(form, meshes):
    e, ids = example(3)
    half = e.astype(jnp.bfloat16)
    (value, _), (gradient, _) = run_form(half, ids, meshes[8, 1, 1], form=form, chunks=2)
    (expected, _), (expected_gradient, _) = run_form(half.astype(np.float32), ids, meshes[8, 1, 1])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        gradient.astype(np.float32), expected_gradient, atol=0.02 * np.abs(expected_gradient).max()
    )


@FORMS
def test_matryoshka_is_the_mean_of_the_losses_of_normalised_prefixes(form, meshes):
    e, ids = example(3)
    (value, metrics), (gradient, _) = run_form(e, ids, meshes[8, 1, 1], dimensions=(24, 6), **form)
    short = e[..., :6] / np.linalg.norm(e[..., :6], axis=-1, keepdims=True)
    np.testing.assert_allclose(
        value, np.mean([reference(part, ids, 3.0, True) for part in (short, e)]), rtol=1e-6
    )
    (whole, of_the_whole), (whole_gradient, _) = run_form(
        e, ids, meshes[8, 1, 1], dimensions=(24,), **form
    )
    np.testing.assert_allclose(whole, reference(e, ids, 3.0, True), rtol=1e-6)
    assert metrics == of_the_whole
    # The last units count in one of two losses.
    np.testing.assert_allclose(gradient[..., 6:], whole_gradient[..., 6:] / 2, atol=1e-7)


def run_loss(e, ids, log_scale=0.0, sizes=(8, 1, 1), **form):
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        return jax.device_get(
            jax.jit(InfoNCE(**form))(place(e, mesh), place(ids, mesh), jnp.float32(log_scale))
        )


@FORMS
def test_equal_vectors_give_the_logarithm_of_the_batch(form):
    e = np.ones((16, 2, 4), np.float32) / 2
    value, metrics = run_loss(e, np.arange(1, 33, dtype=np.int32).reshape(16, 2), 3.0, **form)
    np.testing.assert_allclose(value, np.log(16), rtol=1e-6)
    np.testing.assert_allclose(metrics['log_batch'], np.log(16), rtol=1e-6)
    np.testing.assert_allclose(
        (metrics['positive_cosine'], metrics['negative_cosine']), 1, rtol=1e-6
    )
    assert (metrics['accuracy_xy'], metrics['accuracy_yx']) == (0, 0)


@FORMS
def test_orthogonal_partners_with_hard_negatives_give_no_loss(form):
    """Trap T5: with P and N gathered in another order than the labels think, this is large."""
    e = np.zeros((8, 4, 32), np.float32)
    for pair in range(8):
        e[pair, 0, pair] = e[pair, 1, pair] = e[pair, 2, 8 + pair] = e[pair, 3, 16 + pair] = 1
    value, metrics = run_loss(
        e, np.arange(1, 33, dtype=np.int32).reshape(8, 4), np.log(100), **form
    )
    assert value < 1e-6
    assert (metrics['accuracy_xy'], metrics['accuracy_yx'], metrics['positive_cosine']) == (1, 1, 1)


@FORMS
def test_accuracy_counts_nearest_partners(form):
    e, ids = example(2)
    _, metrics = run_loss(e, ids, **form)
    there = ids[:, 0] > 0
    cosine = np.where(there[None] & there[:, None], e[:, 0] @ e[:, 1].T, -9)
    for i, j in [(3, 9), (9, 3), (4, 12), (12, 4)]:
        cosine[i, j] = -9
    right = np.arange(16) == cosine.argmax(1), np.arange(16) == cosine.argmax(0)
    np.testing.assert_allclose(
        [metrics['accuracy_xy'], metrics['accuracy_yx']],
        [side[there].mean() for side in right],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        metrics['positive_cosine'], np.diagonal(e[:, 0] @ e[:, 1].T)[there].mean(), rtol=1e-5
    )
    assert metrics['pairs'] == 15


def test_a_batch_that_the_whole_mesh_does_not_divide_is_split_over_its_rows_alone():
    e, ids = example(2)
    np.testing.assert_allclose(
        run_loss(e[:4], ids[:4], 2.0, (2, 2, 2))[0], reference(e[:4], ids[:4], 2.0, True), rtol=1e-6
    )


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'form': 'ring'}, 'loss.form=.*choose one of dense, chunked'),
        ({'chunks': 0}, 'loss.chunks=0'),
        ({'initial_temperature': 0.001}, 'loss.initial_temperature=0.001'),
        (
            {'train_temperature': False, 'temperature_per_source': True},
            'loss.temperature_per_source=True goes with',
        ),
        ({'dimensions': (8, 8)}, 'loss.dimensions='),
        ({'dimensions': (8, 0)}, 'loss.dimensions='),
        ({'dimensions': 64}, 'loss.dimensions=64'),
        ({'dimensions': ('64',)}, 'loss.dimensions='),
        # One pair of brackets was left out.
        ({'terms': ('uniformity', 0.1)}, 'loss.terms=.*pairs of a name and a weight'),
        ({'terms': (('uniformity', 'x'),)}, 'loss.terms='),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_key(settings, expected):
    with pytest.raises(UserError, match=expected):
        InfoNCE(**settings)


def test_more_units_than_the_model_has_are_refused():
    InfoNCE(dimensions=(8, 64)).check_width(64)
    with pytest.raises(UserError, match='loss.dimensions=.*model.width=32'):
        InfoNCE(dimensions=(8, 64)).check_width(32)
