"""Memory and arithmetic of the loss on a TPU, compiled ahead of time.

It runs benchmarks/loss_memory.py at a smaller size.
"""

import pytest

from benchmarks.loss_memory import measure

BATCH, WIDTH, CHIPS = 16_384, 512, 8


@pytest.fixture(scope='module')
def forms(libtpu):  # compiled at the level that users get: at a lower one, memory is larger
    return measure('v5e:2x4', BATCH, WIDTH, 'bfloat16', chunks=(8,))


def test_arithmetic_relative_to_one_product_and_its_gradients(forms):
    assert forms['CLIP']['arithmetic'] == pytest.approx(2, rel=0.01)
    assert forms['dense']['arithmetic'] <= 1.05
    assert forms['chunked, 8']['arithmetic'] <= 1.4


def test_temporary_memory_is_bounded(forms):
    """Scales the bounds measured for B = 65,536, D = 2,048 on 16 chips to this size.

    There, similarities are 1 GiB and vectors 0.25 GiB per chip, and the bounds of the two forms are
    1.6 GiB (dense) and 0.31 GiB (chunked).
    """
    similarities = BATCH // CHIPS * BATCH * 4  # float32
    vectors = BATCH * WIDTH * 2  # bfloat16
    assert forms['dense']['temporary_bytes'] <= 1.6 / 1.25 * (similarities + vectors)
    assert forms['chunked, 8']['temporary_bytes'] <= 0.31 / 1.25 * (similarities + vectors)
    assert forms['CLIP']['temporary_bytes'] > 2 * (similarities + vectors)
