"""What the loss takes on a TPU, compiled ahead of time: the benchmark's figures
(benchmarks/loss_memory.py) on a smaller size.
"""

import pytest

from benchmarks.loss_memory import measure

BATCH, WIDTH, CHIPS = 16_384, 512, 8


@pytest.fixture(scope='module')
def forms(libtpu, hurry):
    return measure('v5e:2x4', BATCH, WIDTH, 'bfloat16', chunks=(8,))


def test_arithmetic_in_units_of_one_product_and_its_gradients(forms):
    assert forms['CLIP']['arithmetic'] == pytest.approx(2, rel=0.01)
    assert forms['dense']['arithmetic'] <= 1.05
    assert forms['chunked, 8']['arithmetic'] <= 1.4


def test_temporary_memory(forms):
    """The bounds of B = 65,536, D = 2,048 on 16 chips (1.6 and 0.7 GiB), by what they are made of
    there.
    """
    similarities, vectors = BATCH // CHIPS * BATCH * 4, BATCH * WIDTH * 2  # float32; bfloat16
    # There 1 GiB and 0.25 GiB.
    assert forms['dense']['temporary_bytes'] <= 1.6 / 1.25 * (similarities + vectors)
    assert forms['chunked, 8']['temporary_bytes'] <= 0.31 / 1.25 * (similarities + vectors)
    assert forms['CLIP']['temporary_bytes'] > 2 * (similarities + vectors)
