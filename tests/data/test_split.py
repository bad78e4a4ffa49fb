import numpy as np
import pytest

from cpt_jax.data.split import rows_of
from cpt_jax.runtime.errors import UserError


def test_splits_are_disjoint_and_make_up_all():
    heldout = np.array([False, True, False, True, True])
    assert rows_of('train', heldout, 's', 0.5).tolist() == [0, 2]
    assert rows_of('heldout', heldout, 's', 0.5).tolist() == [1, 3, 4]
    assert rows_of('all', heldout, 's', 0.5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    'split, heldout, holdout',
    [('train', [True], 0.5), ('heldout', [False], 0.5), ('all', [], 0.0), ('train', [], 0.0)],
)
def test_empty_split_is_refused(split, heldout, holdout):
    with pytest.raises(
        UserError, match=f"^no pairs in some/path for split '{split}' with holdout={holdout:g}"
    ):
        rows_of(split, np.array(heldout, bool), 'some/path', holdout)


def test_nothing_to_hold_out_is_no_mistake():
    assert len(rows_of('heldout', np.array([False]), 's', 0.0)) == 0


def test_unknown_split():
    with pytest.raises(ValueError, match='validation'):
        rows_of('validation', np.array([False]), 's', 0.0)
