"""The uniformity term of the loss against its formula."""

import jax
import numpy as np
import pytest

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runtime.errors import UserError
from tests.loss.test_infonce import PLACES, compute_numeric_gradient, example, place


def compute_reference(e_BxTxD, ids_BxTxZ):
    """Returns log mean exp(-2 |u - v|^2) over pairs of different texts, averaged over both sides.

    For unit vectors, |u - v|^2 = 2 - 2 uv.
    """
    sides = []
    for t in (0, 1):
        e, ids = e_BxTxD[:, t].astype(np.float64), ids_BxTxZ[:, t]
        present = [(i, j) for i in range(16) for j in range(16) if ids[i].any() and ids[j].any()]
        pairs = [(i, j) for i, j in present if (ids[i] != ids[j]).all()]
        sides.append(np.log(np.mean([np.exp(-2 * (2 - 2 * e[i] @ e[j])) for i, j in pairs])))
    return np.mean(sides)


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2)])
def test_uniformity_matches_its_formula_and_is_weighted(meshes, sizes):
    (e, ids), mesh = example(3), meshes[sizes]
    # A term of weight 0 is left out, also where the batch has no scores for it.
    plain, weighted = InfoNCE(), InfoNCE(terms=(('uniformity', 0.5), ('kl', 0.0)))

    def losses(e_BxTxD, ids_BxTxZ):
        loss, metrics = weighted(e_BxTxD, ids_BxTxZ, 0.0)
        return loss - plain(e_BxTxD, ids_BxTxZ, 0.0)[0], metrics['uniformity']

    with jax.set_mesh(mesh):
        arrays = place(e, mesh), place(ids, mesh)
        (added, found), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(*arrays)
    expected = compute_reference(e, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(added, expected / 2, atol=1e-5)
    gradient, places = np.asarray(gradient), [*PLACES, (2, 1, 5)]
    np.testing.assert_allclose(
        [gradient[place] for place in places],
        compute_numeric_gradient(lambda e: compute_reference(e, ids) / 2, e, places),
        rtol=1e-4,
        atol=1e-6,
    )
    # Hard negatives and absent pairs have no gradient.
    np.testing.assert_allclose(gradient[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(gradient[7], 0, atol=1e-6)


def test_unknown_term_is_rejected():
    with pytest.raises(UserError, match=r"loss\.terms: unknown term 'uniformty'; choose from"):
        InfoNCE(terms=(('uniformty', 1.0),))
