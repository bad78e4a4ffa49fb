"""A training step as launch/train.py makes it, for timing: the run of a config without its
directory.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cpt_jax.data.batch import place
from cpt_jax.runtime.mesh import shardings
from cpt_jax.training.setup import Run, set_up
from cpt_jax.training.step import StepPrograms


def run_of(config: Mapping[str, Any], source: str) -> Run:
    """All that a run is made of, without held-out pairs.

    Args:
      config: the sections of configs/base.py.
      source: 'config', or 'python_source' in place of the config's own sources.
    """
    python = (
        {'sources': {'python': {'kind': 'python_source', 'weight': 1.0}}}
        if source == 'python_source'
        else {}
    )
    changes = {
        'data': config['data'] | python,
        'evaluation': config['evaluation'] | {'every_steps': 0},
    }
    with tempfile.TemporaryDirectory() as nothing:
        return set_up({**config, **changes}, Path(nothing))


class TrainingStep:
    """A call is one step on the next of some real batches, from the first again after the last.

    Attributes:
      batches: as they lie on the devices.
      parameters: number of them.
      compile_seconds: of the step, for all numbers of rows that these batches have.
    """

    def __init__(self, run: Run, batches: int):
        upcoming = run.batches_after(0)
        with jax.set_mesh(run.mesh):
            self.batches = [place(next(upcoming), run.mesh, run.layout) for _ in range(batches)]
            self._state = jax.jit(run.init, out_shardings=shardings(run.abstract_state()))()
            start = time.perf_counter()
            programs = StepPrograms(run)
            self._steps = [programs(self._state, batch) for batch in self.batches]
            self.compile_seconds = time.perf_counter() - start
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        self._calls = 0

    def __call__(self) -> None:
        number = self._calls % len(self.batches)
        self._state, metrics = self._steps[number](self._state, self.batches[number])
        self._calls += 1
        jax.block_until_ready((self._state, metrics))
