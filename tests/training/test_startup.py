"""Lines of the table that a run prints before its first step."""

from types import SimpleNamespace
from typing import cast

import pytest

from cpt_jax.training.setup import Run
from cpt_jax.training.startup import describe_random_start


@pytest.mark.parametrize(
    ('objective', 'init_from', 'parameters', 'is_shown'),
    [
        ('contrastive', '', 300_000_000, True),
        ('contrastive', '', 100_000_000, False),
        ('contrastive', 'models/gpt2-medium', 300_000_000, False),
        ('lm', '', 300_000_000, False),
    ],
)
def test_large_random_start_is_explained_in_one_line(objective, init_from, parameters, is_shown):
    run = SimpleNamespace(
        provenance=SimpleNamespace(config={'init_from': init_from}),
        objective=SimpleNamespace(name=objective),
        encoder_config=SimpleNamespace(width=1024),
    )
    line = describe_random_start(cast(Run, run), parameters)
    assert ('init_from to a language model of width 1,024' in line) == is_shown
    assert '\n' not in line
