"""The margin that masks false negatives, against a short float64 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.loss.targets import Targets
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from tests.loss.test_infonce import compute_numeric_gradient, example, find_negatives, place

SCALE = 5.0
FORMS = [{'form': 'dense'}, {'form': 'chunked', 'chunks': 3}]
# The margin of Qwen3-Embedding would mask little among random vectors.
OWN = {'mask_margin': -0.4}
GUIDED = {'mask_margin': -0.25, 'mask_relative': True, 'guide': 'vectors'}


def make_guide(texts: int):
    """Returns vectors of another dimension; the partner of some x is not its nearest text."""
    guide = np.random.default_rng(5).normal(size=(16, texts, 6))
    guide[:, 1] += 2 * guide[:, 0]
    guide[2, 1] = -guide[2, 0]  # a pair with a negative cosine
    return (guide / np.linalg.norm(guide, axis=-1, keepdims=True)).astype(np.float32)


def compute_reference(e, ids, guide, margin, is_relative):
    """Returns the loss in float64 with loops, and the fraction of masked negatives of the x's. The
    guide decides which candidates are masked.
    """
    e, guide = np.asarray(e, np.float64), np.asarray(guide, np.float64)
    in_batch, hard = find_negatives(np.asarray(ids))
    own = np.sum(guide[:, 0] * guide[:, 1], -1)
    limit = own + margin * (np.abs(own) if is_relative else 1)
    losses, masked = [], []
    for i in np.flatnonzero(np.asarray(ids)[:, 0, 0] > 0):
        near_y = guide[:, 1] @ guide[i, 0] > limit[i]
        near_hard = guide[:, 2:] @ guide[i, 0] > limit[i]
        near_x = guide[:, 0] @ guide[i, 1] > limit[i]
        masked += [*near_y[in_batch[i]], *near_hard[hard[i]]]
        partner = e[i, 0] @ e[i, 1]
        forward = [
            *e[in_batch[i] & ~near_y, 1] @ e[i, 0],
            *e[:, 2:][hard[i] & ~near_hard] @ e[i, 0],
        ]
        backward = e[in_batch[:, i] & ~near_x, 0] @ e[i, 1]
        for logits in (forward, backward):
            losses.append(np.logaddexp.reduce(SCALE * (np.array([partner, *logits]) - partner)))
    return np.mean(losses), np.mean(masked)


@functools.cache
def compile_loss(settings: tuple):
    loss = InfoNCE(**dict(settings))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))


def run_loss(e, ids, vectors, devices=8, **settings):
    mesh = make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        arrays = place(e, mesh), place(ids, mesh), jnp.float32(np.log(SCALE))
        placed = None if vectors is None else place(vectors, mesh)
        return jax.device_get(compile_loss((*settings.items(),))(*arrays, Targets(placed)))


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('form', FORMS, ids=str)
@pytest.mark.parametrize('mask', [OWN, GUIDED], ids=['own', 'guided'])
def test_value_and_gradient_match_the_reference(form, mask, devices):
    """The gradient is that of a fixed mask: the limit has none."""
    e, ids = example(3)
    guide = make_guide(3) if 'guide' in mask else None
    measured = e if guide is None else guide
    margin = mask['mask_margin'], mask.get('mask_relative', False)
    expected, masked = compute_reference(e, ids, measured, *margin)
    assert 0.05 < masked < 0.7
    (value, metrics), (e_gradient, _) = run_loss(e, ids, guide, devices, **form, **mask)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=SCALE * 2**-24)
    np.testing.assert_allclose(metrics['masked_negatives'], masked, rtol=1e-6)
    places = [(0, 0, 0), (2, 0, 3), (4, 1, 7), (9, 1, 2), (5, 2, 1), (7, 0, 1)]
    expected_gradient = compute_numeric_gradient(
        lambda e: compute_reference(e, ids, measured, *margin)[0], e, places
    )
    found = [e_gradient[place] for place in places]
    np.testing.assert_allclose(found, expected_gradient, rtol=1e-4, atol=2e-5)


def test_large_margin_masks_nothing():
    e, ids = example(3)
    (value, metrics), _ = run_loss(e, ids, None, **FORMS[0], mask_margin=2.0)
    (plain, plain_metrics), _ = run_loss(e, ids, None, **FORMS[0])
    assert value == plain
    assert metrics.pop('masked_negatives') == 0
    assert metrics == plain_metrics


def test_partner_is_never_masked():
    """All candidates of every x are above its limit, its own partner too: nothing but the partner
    is left.
    """
    e, ids = example(3)
    (value, metrics), _ = run_loss(e, ids, None, **FORMS[0], mask_margin=-2.0)
    assert value == 0
    assert metrics['masked_negatives'] == 1
    assert metrics['accuracy_xy'] < 1  # masked candidates count as before


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'mask_margin': 3.0}, 'loss.mask_margin=3.0: must be from -2 to 2'),
        ({'mask_margin': float('nan')}, 'loss.mask_margin=nan'),
        ({'guide': 'vectors'}, "loss.guide='vectors' needs loss.mask_margin"),
        ({'mask_relative': True}, 'loss.mask_relative=True needs loss.mask_margin'),
    ],
    ids=str,
)
def test_invalid_masks_are_rejected(settings, expected):
    with pytest.raises(UserError, match=expected):
        InfoNCE(**settings)
