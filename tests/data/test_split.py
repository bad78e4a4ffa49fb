import numpy as np
import pytest

from cpt_jax.data.split import select_rows
from cpt_jax.runtime.errors import UserError


def test_splits_are_disjoint_and_make_up_all():
    heldout = np.array([False, True, False, True, True])
    assert select_rows('train', heldout, 's', 0.5).tolist() == [0, 2]
    assert select_rows('heldout', heldout, 's', 0.5).tolist() == [1, 3, 4]
    assert select_rows('all', heldout, 's', 0.5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    'split, heldout, holdout',
    [('train', [True], 0.5), ('heldout', [False], 0.5), ('all', [], 0.0), ('train', [], 0.0)],
)
def test_empty_split_is_refused(split, heldout, holdout):
    with pytest.raises(
        UserError, match=f"^no pairs in some/path for split '{split}' with holdout={holdout:g}"
    ):
        select_rows(split, np.array(heldout, bool), 'some/path', holdout)


def test_empty_heldout_split_is_accepted_if_holdout_is_0():
    assert len(select_rows('heldout', np.array([False]), 's', 0.0)) == 0


def test_unknown_split_is_a_value_error():
    with pytest.raises(ValueError, match='validation'):
        select_rows('validation', np.array([False]), 's', 0.0)
