"""The uniformity term against its formula, on one device and on eight."""

import jax
import numpy as np
import pytest

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runtime.errors import UserError
from tests.loss.test_infonce import PLACES, example, numeric_gradient, place


def reference(e_BxTxD, ids_BxT):
    """log mean exp(-2 |u - v|^2) over different texts of a side; the mean of both sides. For unit
    vectors |u - v|^2 is 2 - 2 uv.
    """
    sides = []
    for t in (0, 1):
        e, ids = e_BxTxD[:, t].astype(np.float64), ids_BxT[:, t]
        there = [(i, j) for i in range(len(e)) for j in range(len(e)) if ids[i] and ids[j]]
        pairs = [(i, j) for i, j in there if ids[i] != ids[j]]
        sides.append(np.log(np.mean([np.exp(-2 * (2 - 2 * e[i] @ e[j])) for i, j in pairs])))
    return np.mean(sides)


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2)])
def test_uniformity_is_its_formula_and_is_added_with_its_weight(meshes, sizes):
    (e, ids), mesh = example(3), meshes[sizes]
    plain, weighted = InfoNCE(), InfoNCE(terms=(('uniformity', 0.5),))

    def losses(e_BxTxD, ids_BxT):
        loss, metrics = weighted(e_BxTxD, ids_BxT, 0.0)
        return loss - plain(e_BxTxD, ids_BxT, 0.0)[0], metrics['uniformity']

    with jax.set_mesh(mesh):
        arrays = place(e, mesh), place(ids, mesh)
        (added, found), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(*arrays)
    expected = reference(e, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(added, expected / 2, atol=1e-5)
    gradient, places = np.asarray(gradient), [*PLACES, (2, 1, 5)]
    np.testing.assert_allclose(
        [gradient[place] for place in places],
        numeric_gradient(lambda e: reference(e, ids) / 2, e, places),
        rtol=1e-4,
        atol=1e-6,
    )
    # Hard negatives do not count, nor does a pair that is left out.
    np.testing.assert_allclose(gradient[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(gradient[7], 0, atol=1e-6)


def test_a_term_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"loss\.terms: there is no term 'uniformty'; choose from"):
        InfoNCE(terms=(('uniformty', 1.0),))
