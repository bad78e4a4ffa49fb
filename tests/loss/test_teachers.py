"""Terms against a teacher's scores and vectors, against short float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.loss.targets import Targets
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.training.source_losses import SourceLoss, SourceLosses
from tests.loss.test_infonce import (
    compute_numeric_gradient,
    compute_reference,
    example,
    find_negatives,
    place,
)

SCALE, TEACHER_TEMPERATURE = 5.0, 2.0
WEIGHTS = {
    'kl': 0.5,
    'margin_mse': 2.0,
    'cosent': 0.25,
    'teacher_cosine': 3.0,
    'teacher_mse': 4.0,
}


def make_targets():
    """Returns scores [16, 3], with equal grades, a teacher's vectors [16, 4, 24] and a map."""
    random = np.random.default_rng(4)
    scores = random.normal(size=(16, 3)).astype(np.float32)
    scores[:, 0] = np.round(scores[:, 0])
    teacher = random.normal(size=(16, 4, 24))
    teacher /= np.linalg.norm(teacher, axis=-1, keepdims=True)
    return scores, teacher.astype(np.float32), random.normal(size=(24, 24)).astype(np.float32) / 5


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits)


def compute_kl(e, present, scores):
    def compute(i):
        kept = present[i, 1:]
        student = log_softmax(SCALE * (e[i, 1:] @ e[i, 0])[kept])
        teacher = log_softmax(scores[i, kept] / TEACHER_TEMPERATURE)
        return np.sum(np.exp(teacher) * (teacher - student))

    return np.mean([compute(i) for i in np.flatnonzero(present[:, 0])])


def compute_margin_mse(e, present, scores):
    errors = []
    for i, t in np.argwhere(present[:, 2:]):
        margin = e[i, 0] @ (e[i, 1] - e[i, 2 + t])
        errors.append(margin - (scores[i, 0] - scores[i, 1 + t]) / TEACHER_TEMPERATURE)
    return np.mean(np.square(errors))


def compute_cosent(e, present, scores):
    kept = np.flatnonzero(present[:, 0])
    cosine = {i: e[i, 0] @ e[i, 1] for i in kept}
    exponents = [
        SCALE * (cosine[j] - cosine[i]) for i in kept for j in kept if scores[i, 0] > scores[j, 0]
    ]
    return np.logaddexp.reduce([0, *exponents])


def compute_teacher_cosine(e, present, teacher):
    return np.mean([1 - e[i, t] @ teacher[i, t] for i, t in np.argwhere(present)])


def compute_teacher_mse(e, present, teacher, teacher_map):
    mapped = e @ teacher_map
    return np.mean([np.square(mapped[i, t] - teacher[i, t]) for i, t in np.argwhere(present)])


def compute_terms(e, ids, teacher_map):
    """Returns each term in float64."""
    e, teacher_map = np.asarray(e, np.float64), np.asarray(teacher_map, np.float64)
    scores, teacher, _ = (np.asarray(array, np.float64) for array in make_targets())
    present = (ids[..., 0] > 0) & (ids[:, :1, 0] > 0)
    return {
        'kl': compute_kl(e, present, scores),
        'margin_mse': compute_margin_mse(e, present, scores),
        'cosent': compute_cosent(e, present, scores),
        'teacher_cosine': compute_teacher_cosine(e, present, teacher),
        'teacher_mse': compute_teacher_mse(e, present, teacher, teacher_map),
    }


@functools.cache
def compile_terms(form: str):
    """Returns a function of vectors, ids, log scale, targets, source and map, with the gradients of
    vectors, log scale and map.
    """
    loss = InfoNCE(form=form, chunks=3, teacher_temperature=TEACHER_TEMPERATURE)
    losses = SourceLosses(
        {
            'all': SourceLoss(1.0, (0.5, 0.5), True, None, WEIGHTS),
            'listed': SourceLoss(2.0, (1.0, 0.0), False, 0.5, {}),
            'backward': SourceLoss(1.0, (0.0, 1.0), True, None, {'kl': 0.0, 'cosent': 1.0}),
        }
    )

    def compute(e, ids, log_scale, targets, source, teacher_map):
        settings = losses.select_settings(source)
        log_scale = losses.fix_log_scale(log_scale, source)
        return loss(e, ids, log_scale, targets, settings, teacher_map)

    return jax.jit(jax.value_and_grad(compute, argnums=(0, 2, 5), has_aux=True))


def run_terms(devices: int, form: str, source: int):
    """Returns ((loss, metrics), gradients) of a batch from a source."""
    e, ids = example(4)
    scores, teacher, teacher_map = make_targets()
    mesh = make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        targets = Targets(scores=place(scores, mesh), teacher=place(teacher, mesh))
        return jax.device_get(
            compile_terms(form)(
                place(e, mesh),
                place(ids, mesh),
                jnp.float32(np.log(SCALE)),
                targets,
                jnp.int32(source),
                jax.device_put(teacher_map, jax.NamedSharding(mesh, jax.P())),
            )
        )


FORMS = pytest.mark.parametrize('form', ['dense', 'chunked'])


@pytest.mark.parametrize(('devices', 'form'), [(1, 'dense'), (8, 'dense'), (8, 'chunked')])
def test_values_and_gradients_match_the_references(devices, form):
    e, ids = example(4)
    *_, teacher_map = make_targets()
    (value, metrics), (e_gradient, scale_gradient, map_gradient) = run_terms(
        devices, form, source=0
    )
    expected = compute_terms(e, ids, teacher_map)
    assert all(term > 0.01 for term in expected.values())
    for name, term in expected.items():
        np.testing.assert_allclose(metrics[name], term, rtol=5e-6, err_msg=name)

    def compute_total(e, teacher_map=teacher_map):
        terms = compute_terms(e, ids, teacher_map)
        infonce = compute_reference(e, ids, np.log(SCALE), symmetric=True)
        return infonce + sum(WEIGHTS[name] * term for name, term in terms.items())

    np.testing.assert_allclose(value, compute_total(e), rtol=5e-6)
    places = [(0, 0, 0), (3, 0, 5), (4, 1, 7), (9, 2, 2), (6, 3, 3), (7, 0, 1)]
    np.testing.assert_allclose(
        [e_gradient[place] for place in places],
        compute_numeric_gradient(compute_total, e, places),
        rtol=1e-4,
        atol=1e-5,
    )
    places = [(0, 0), (3, 7)]
    np.testing.assert_allclose(
        [map_gradient[place] for place in places],
        compute_numeric_gradient(lambda array: compute_total(e, array), teacher_map, places),
        rtol=1e-4,
        atol=1e-6,
    )
    # The temperature is trained by InfoNCE alone.
    np.testing.assert_allclose(
        scale_gradient,
        compute_numeric_gradient(
            lambda s: compute_reference(e, ids, s[0], symmetric=True), [np.log(SCALE)], [(0,)]
        )[0],
        rtol=1e-4,
    )


@FORMS
def test_source_without_in_batch_negatives_has_its_hard_negatives_alone(form):
    """The source has a temperature and a weight of its own, and no terms."""
    e, ids = example(4)
    (value, metrics), (_, scale_gradient, map_gradient) = run_terms(8, form, source=1)
    _, hard = find_negatives(ids)
    losses = []
    for i in np.flatnonzero(ids[:, 0, 0]):
        candidates = np.float64(e[i, 1:])[[True, *hard[i, i]]] @ e[i, 0]
        losses.append(-log_softmax(candidates / 0.5)[0])
    np.testing.assert_allclose(value, 2 * np.mean(losses), rtol=2e-6)
    assert scale_gradient == 0 and not map_gradient.any()
    assert all(metrics[name] == 0 for name in WEIGHTS)


@FORMS
def test_source_has_a_direction_of_its_own(form):
    e, ids = example(4)
    (value, metrics), _ = run_terms(8, form, source=2)
    both, forward = (compute_reference(e, ids, np.log(SCALE), way) for way in (True, False))
    cosent = compute_terms(e, ids, make_targets()[2])['cosent']
    np.testing.assert_allclose(value, 2 * both - forward + cosent, rtol=2e-6)
    np.testing.assert_allclose(metrics['cosent'], cosent, rtol=2e-6)
    assert metrics['kl'] == 0
