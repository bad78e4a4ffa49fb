"""InfoNCE against a short float64 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import BATCH, make_mesh


def find_negatives(ids_BxTxZ):
    """Returns bool[B, B] and bool[B, B, T - 2]: which y's and which hard negatives are negatives of
    each x. The cells [i, j] are those of pair j for pair i. With a single id, the rule is that of
    earlier runs. Further ids compare x with y's and hard negatives only.
    """

    def same(a, b):
        return ((a == b) & (a > 0)).any(-1)

    x, y, hard = ids_BxTxZ[:, 0], ids_BxTxZ[:, 1], ids_BxTxZ[:, 2:]
    shared = same(x[:, None, :2], x[:, :2]) | same(y[:, None, :2], y[:, :2])
    masked = same(y[:, None, None, :2], hard[..., :2])
    if ids_BxTxZ.shape[-1] > 1:
        shared |= same(x[:, None], y) | same(y[:, None, :2], x[:, :2])
        masked |= same(x[:, None, None], hard) | same(hard, x[:, None])
        masked |= same(hard[..., :2], y[:, None, :2])
    present = x[:, :1] > 0
    return present & present.T & ~shared, present[..., None] & (hard[..., 0] > 0) & ~masked


def compute_reference(e_BxTxD, ids_BxTxZ, log_scale, symmetric):
    """Computes the loss in float64 with loops."""
    e, scale = np.asarray(e_BxTxD, np.float64), np.exp(log_scale)
    in_batch, hard = find_negatives(np.asarray(ids_BxTxZ))
    losses = []
    for i in np.flatnonzero(np.asarray(ids_BxTxZ)[:, 0, 0] > 0):
        own = e[i, 0] @ e[i, 1]
        forward = [own, *(e[in_batch[i], 1] @ e[i, 0]), *(e[:, 2:][hard[i]] @ e[i, 0])]
        backward = [own, *(e[in_batch[:, i], 0] @ e[i, 1])]
        both = [np.logaddexp.reduce(scale * (np.array(one) - own)) for one in (forward, backward)]
        losses.append(np.mean(both) if symmetric else both[0])
    return np.mean(losses)


def example(texts: int, seed: int = 0):
    random = np.random.default_rng(seed)
    e = random.normal(size=(16, texts, 24))
    e[:, 1] += 0.7 * e[:, 0]
    ids = 1 + np.arange(16 * texts * 2).reshape(16, texts, 2)
    ids[3, 0] = ids[9, 0]  # the same query twice
    ids[4, 1, 0] = ids[12, 1, 0]  # a positive with the same words
    ids[10, 0, 1] = ids[1, 1, 1]  # a query with the tokens of another query's positive
    ids[14, 1] = ids[14, 0]  # a query that is its own positive
    ids[7] = 0  # an empty slot: a pair that did not fit into its rows
    if texts > 2:
        ids[5, 2, 0] = ids[2, 1, 0]  # a hard negative that is another anchor's positive
        ids[8, 2, 1] = ids[11, 0, 1]  # a hard negative that is another anchor
        ids[0, 2] = ids[0, 1]  # a hard negative that is its own positive
        ids[15, 2, 1] = ids[15, 0, 1]  # a hard negative that is its own anchor
        ids[6, 2] = 0  # a pair with fewer hard negatives
    return (e / np.linalg.norm(e, axis=-1, keepdims=True)).astype(np.float32), ids.astype(np.int32)


def place(array, mesh):
    return jax.device_put(array, jax.NamedSharding(mesh, P(BATCH)))


def compute_numeric_gradient(function, array, places, step=1e-5):
    """Returns central differences in float64 with respect to the elements at `places`."""
    out = []
    for place in places:
        plus, minus = np.array(array, np.float64), np.array(array, np.float64)
        plus[place] += step
        minus[place] -= step
        out.append((function(plus) - function(minus)) / (2 * step))
    return np.array(out)


PLACES = [(0, 0, 0), (3, 0, 5), (4, 1, 7), (9, 1, 2), (7, 0, 1)]


@functools.cache
def compute_expected(texts: int, symmetric: bool, scale: float):
    """Returns the reference value for `example(texts)`, its gradient at PLACES, and its gradient
    with respect to the log scale.

    Cached, because the expected numbers are the same for every form and mesh.
    """
    e, ids = example(texts)
    log_scale = np.float32(np.log(scale))
    places = [*PLACES, (15, texts - 1, 23)]
    return (
        compute_reference(e, ids, float(log_scale), symmetric),
        compute_numeric_gradient(
            lambda e: compute_reference(e, ids, float(log_scale), symmetric), e, places
        ),
        compute_numeric_gradient(
            lambda s: compute_reference(e, ids, float(s[0]), symmetric),
            np.array([log_scale]),
            [(0,)],
        ),
    )


@functools.cache
def compile_value_and_gradient(form: tuple, symmetric: bool):
    """Returns a jitted function that is compiled once for all scales."""
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
def test_value_and_gradient_match_the_reference(form, sizes, texts, symmetric, scale):
    e, ids = example(texts)
    log_scale = np.float32(np.log(scale))
    run = compile_value_and_gradient((*form.items(),), symmetric)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        value, (e_gradient, scale_gradient) = jax.device_get(
            run(place(e, mesh), place(ids, mesh), jnp.float32(log_scale))
        )
    # A float32 logit has a relative error of 2**-24, and is at most `scale`.
    expected, expected_gradient, expected_scale_gradient = compute_expected(texts, symmetric, scale)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=scale * 2**-24)
    # A float32 logit of up to 100 has an error of 4e-6, which the scale multiplies in the gradient.
    places = [*PLACES, (15, texts - 1, 23)]
    np.testing.assert_allclose(
        [e_gradient[place] for place in places], expected_gradient, rtol=1e-4, atol=1e-6 * scale
    )
    np.testing.assert_allclose(scale_gradient, expected_scale_gradient[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('form', [{'form': 'dense'}, {'form': 'chunked', 'chunks': 2}], ids=str)
def test_texts_with_one_id_are_compared_in_the_same_column(form):
    """These are the masks of runs that began before data.equal_texts existed."""
    e, ids = example(3)
    ids[10, 0, 0] = ids[1, 1, 0]
    ids = ids[..., :1]
    expected = compute_reference(e, ids, 0.0, True)
    assert abs(expected - compute_reference(e, np.repeat(ids, 2, -1), 0.0, True)) > 1e-3
    mesh = make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        run = compile_value_and_gradient((*form.items(),), True)
        value, _ = jax.device_get(run(place(e, mesh), place(ids, mesh), jnp.float32(0.0)))
    np.testing.assert_allclose(value, expected, rtol=2e-6)


@pytest.mark.parametrize('form', [{'form': 'dense'}, {'form': 'chunked', 'chunks': 2}], ids=str)
def test_positives_of_other_pairs_are_no_negatives(form):
    e, ids = example(3)
    more = 1000 + np.arange(16 * 3 * 2, dtype=np.int32).reshape(16, 3, 2)
    more[:, 1:] = more[:, 1:, :1]
    more[0, 0] = more[1, 1, 0], more[2, 2, 0]  # y of pair 1 and a hard negative of pair 2
    more[4, 0] = 0, more[4, 2, 0]  # its own hard negative
    more[9, 0] = more[8, 0]  # no text of another pair is compared with the positives of x
    more[7] = 0
    ids = np.concatenate([ids, more], axis=-1)
    expected = compute_reference(e, ids, 0.0, True)
    assert abs(expected - compute_reference(e, ids[..., :2], 0.0, True)) > 1e-3
    mesh = make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        run = compile_value_and_gradient((*form.items(),), True)
        value, _ = jax.device_get(run(place(e, mesh), place(ids, mesh), jnp.float32(0.0)))
    np.testing.assert_allclose(value, expected, rtol=2e-6)


def make_perfect_batch(rows: list[str]):
    """Returns one-hot vectors and ids of 16 pairs of texts, of which `rows` are the first.

    A text is a letter. A capital letter has the tokens of the small one, but other words. Texts
    that pairs connect have the same vector.
    """
    rows = [*rows, *((chr(200 + i), chr(200 + i) + '.') for i in range(16 - len(rows)))]
    parents = {}

    def find_group(text):
        while parents.setdefault(text, text) != text:
            text = parents[text]
        return text

    for x, y, *_ in rows:
        parents[find_group(y.lower())] = find_group(x.lower())
    places, numbers = {}, {}
    e = np.zeros((16, 3, 24), np.float32)
    ids = np.zeros((16, 3, 2), np.int32)
    for i, row in enumerate(rows):
        for t, text in enumerate(row):
            e[i, t, places.setdefault(find_group(text.lower()), len(places))] = 1
            ids[i, t, 0] = numbers.setdefault(text, len(numbers) + 1)
            ids[i, t, 1] = numbers.setdefault(text.lower() + ' tokens', len(numbers) + 1)
    return e, ids


COLLISIONS = [
    ['ab', 'cb'],
    ['ab', 'ad'],
    ['ab', 'ba'],
    ['ab', 'bc'],
    ['ab', 'ca'],
    ['ab', 'Ab', 'cB'],
    ['ab', 'BC'],
    ['aa', 'ca', 'ad'],
    ['aba', 'cd'],
    ['abB', 'cd'],
    ['abn', 'cda'],
    ['abn', 'cdB'],
]


@FORMS
def test_equal_texts_do_not_change_the_loss_of_a_perfect_model(form):
    """The program is the one that the test above compares with the reference."""
    mesh = make_mesh(8, 1, 1)
    run = compile_value_and_gradient((*form.items(),), True)

    def compute_loss(rows):
        e, ids = make_perfect_batch(rows)
        with jax.set_mesh(mesh):
            return float(run(place(e, mesh), place(ids, mesh), jnp.float32(np.log(20)))[0])

    expected = compute_loss(['abn', 'cdm'])
    for rows in COLLISIONS:
        assert compute_loss(rows) == pytest.approx(expected, abs=1e-6), rows
    # Chains over several texts are not closed.
    assert compute_loss(['ab', 'bc', 'cd']) > 0.05


@FORMS
def test_perfect_model_finds_every_partner_of_mirrored_pairs(form):
    e = np.repeat(np.eye(24, dtype=np.float32)[np.arange(16) // 2, None], 2, axis=1)
    ids = 1 + np.arange(64, dtype=np.int32).reshape(16, 2, 2)
    ids[1::2] = ids[::2, ::-1]  # (a, b), (b, a)
    value, metrics = run_loss(e, ids, np.log(20), **form)
    assert value < 1e-6
    assert (metrics['accuracy_xy'], metrics['accuracy_yx']) == (1, 1)


def run_form(e, ids, mesh, log_scale=3.0, **settings):
    """Returns ((value, metrics), (gradient of e, gradient of the log scale))."""
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(InfoNCE(**settings), argnums=(0, 2), has_aux=True))
        return jax.device_get(run(place(e, mesh), place(ids, mesh), jnp.float32(log_scale)))


@pytest.mark.parametrize('texts', [2, 6])
def test_dense_and_chunked_forms_agree(texts, meshes):
    """Compares the whole gradient and all metrics, also for chunks that do not divide the batch."""
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
def test_matryoshka_averages_the_losses_of_normalized_truncated_vectors(form, meshes):
    e, ids = example(3)
    (value, metrics), (gradient, _) = run_form(e, ids, meshes[8, 1, 1], dimensions=(24, 6), **form)
    short = e[..., :6] / np.linalg.norm(e[..., :6], axis=-1, keepdims=True)
    np.testing.assert_allclose(
        value, np.mean([compute_reference(part, ids, 3.0, True) for part in (short, e)]), rtol=1e-6
    )
    (full, full_metrics), (full_gradient, _) = run_form(
        e, ids, meshes[8, 1, 1], dimensions=(24,), **form
    )
    np.testing.assert_allclose(full, compute_reference(e, ids, 3.0, True), rtol=1e-6)
    assert metrics == full_metrics
    # Dimensions from 6 on are part of only one of the two losses.
    np.testing.assert_allclose(gradient[..., 6:], full_gradient[..., 6:] / 2, atol=1e-7)


@functools.cache
def compile_loss(form: tuple):
    return jax.jit(InfoNCE(**dict(form)))


def run_loss(e, ids, log_scale=0.0, sizes=(8, 1, 1), **form):
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        run = compile_loss((*form.items(),))
        return jax.device_get(run(place(e, mesh), place(ids, mesh), jnp.float32(log_scale)))


@FORMS
def test_loss_of_equal_vectors_is_the_log_of_the_batch_size(form):
    e = np.ones((16, 2, 4), np.float32) / 2
    value, metrics = run_loss(e, np.arange(1, 65, dtype=np.int32).reshape(16, 2, 2), 3.0, **form)
    np.testing.assert_allclose(value, np.log(16), rtol=1e-6)
    np.testing.assert_allclose(metrics['log_batch'], np.log(16), rtol=1e-6)
    np.testing.assert_allclose(
        (metrics['positive_cosine'], metrics['negative_cosine']), 1, rtol=1e-6
    )
    assert (metrics['accuracy_xy'], metrics['accuracy_yx']) == (0, 0)


@FORMS
def test_loss_of_orthogonal_pairs_is_zero(form):
    """The loss would be large if y's and hard negatives were gathered in another order than the
    labels assume.
    """
    e = np.zeros((8, 4, 32), np.float32)
    for pair in range(8):
        e[pair, 0, pair] = e[pair, 1, pair] = e[pair, 2, 8 + pair] = e[pair, 3, 16 + pair] = 1
    value, metrics = run_loss(
        e, np.arange(1, 65, dtype=np.int32).reshape(8, 4, 2), np.log(100), **form
    )
    assert value < 1e-6
    assert (metrics['accuracy_xy'], metrics['accuracy_yx'], metrics['positive_cosine']) == (1, 1, 1)


@FORMS
def test_accuracy_is_the_fraction_of_nearest_partners(form):
    e, ids = example(2)
    _, metrics = run_loss(e, ids, **form)
    present = ids[:, 0, 0] > 0
    shared = [(3, 9), (4, 12), (10, 1)]
    cosine = np.where(present[None] & present[:, None], e[:, 0] @ e[:, 1].T, -9)
    for i, j in shared + [(j, i) for i, j in shared]:
        cosine[i, j] = -9
    right = np.arange(16) == cosine.argmax(1), np.arange(16) == cosine.argmax(0)
    np.testing.assert_allclose(
        [metrics['accuracy_xy'], metrics['accuracy_yx']],
        [side[present].mean() for side in right],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        metrics['positive_cosine'], np.diagonal(e[:, 0] @ e[:, 1].T)[present].mean(), rtol=1e-5
    )
    assert metrics['pairs'] == 15


def test_small_batch_is_split_over_the_batch_axes_only():
    e, ids = example(2)
    np.testing.assert_allclose(
        run_loss(e[:4], ids[:4], 2.0, (2, 2, 2))[0],
        compute_reference(e[:4], ids[:4], 2.0, True),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'form': 'ring'}, 'loss.form=.*choose one of dense, chunked'),
        ({'chunks': 0}, 'loss.chunks=0'),
        ({'initial_temperature': 0.001}, 'loss.initial_temperature=0.001'),
        (
            {'train_temperature': False, 'temperature_per_source': True},
            'loss.temperature_per_source=True needs',
        ),
        ({'dimensions': (8, 8)}, 'loss.dimensions='),
        ({'dimensions': (8, 0)}, 'loss.dimensions='),
        ({'dimensions': 64}, 'loss.dimensions=64'),
        ({'dimensions': ('64',)}, 'loss.dimensions='),
        # A pair of parentheses is missing.
        ({'terms': ('uniformity', 0.1)}, 'loss.terms=.*must be pairs of a name and a weight'),
        ({'terms': (('uniformity', 'x'),)}, 'loss.terms='),
    ],
    ids=str,
)
def test_invalid_settings_are_rejected(settings, expected):
    with pytest.raises(UserError, match=expected):
        InfoNCE(**settings)


def test_dimensions_larger_than_the_model_are_rejected():
    InfoNCE(dimensions=(8, 64)).check_width(64)
    with pytest.raises(UserError, match='loss.dimensions=.*model.width=32'):
        InfoNCE(dimensions=(8, 64)).check_width(32)
