import types

import jax
import numpy as np
import pytest

from cpt_jax.runtime.hardware import CHIPS
from cpt_jax.training import utilization
from cpt_jax.training.utilization import Utilization, count_tokens


def test_tokens_are_counted_without_padding():
    # Texts of 2, 3; 4; 1, 1 tokens. Numbers begin anew in each row or go on.
    segments = np.array([[1, 1, 2, 2, 2, 0], [2, 2, 2, 2, 0, 0], [1, 3, 0, 0, 0, 0]])
    tokens, attended = count_tokens(segments.reshape(1, 3, 6))
    assert tokens == 11
    assert attended == pytest.approx((2 * 2 + 3 * 3 + 4 * 4 + 1 + 1) / 11)
    assert count_tokens(np.zeros((1, 2, 4), int)) == (0, 0.0)


def test_mfu_is_the_share_of_the_peak(monkeypatch):
    calls = []

    def count_step_flops(config, tokens, row_length, pairs, texts, lora):
        calls.append((tokens, row_length, pairs, texts))
        return 3e12

    run = types.SimpleNamespace(
        objective=types.SimpleNamespace(count_step_flops=count_step_flops),
        encoder_config=None,
        train=types.SimpleNamespace(batch_pairs=7),
        lora=None,
        layout=types.SimpleNamespace(parts=4, texts=2),
        mesh=types.SimpleNamespace(size=4, devices=np.array([jax.devices()[0]])),
    )
    # Two of the four parts are those of this process.
    batch = {
        part: types.SimpleNamespace(segments_JxRxS=np.array([[[1, 1, 2, 0]]])) for part in (2, 3)
    }
    without = Utilization(run)  # the peak of a CPU is not known
    assert without.count_flops(batch) == 0 and without.make_row(0.0, 1.0) == {} and not calls
    monkeypatch.setattr(utilization, 'find_chip', lambda kind: CHIPS['tpu7x'])
    found = Utilization(run)
    flops = found.count_flops(batch)
    assert calls == [(12, 5 / 3, 7, 2)]
    # A device is half a chip.
    assert found.make_row(2 * flops, 2.0) == {'mfu': pytest.approx(6e12 / 2 / (4 * 2307e12 / 2))}
