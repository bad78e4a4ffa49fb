"""A training step as in launch/train.py, for timing, without the run's directory."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cpt_jax.data.batch import place_batch
from cpt_jax.runtime.mesh import shardings
from cpt_jax.training.setup import Run, set_up
from cpt_jax.training.step import StepPrograms


def make_run(config: Mapping[str, Any], source: str) -> Run:
    """Returns the run of a config, without held-out pairs.

    Args:
      config: the sections of configs/base.py.
      source: 'config' for the sources of the config, or 'python_source' to replace them by the
        Python installation.
    """
    data = dict(config['data'])
    if source == 'python_source':
        data['sources'] = {'python': {'kind': 'python_source', 'weight': 1.0}}
    evaluation = config['evaluation'] | {'every_steps': 0}
    with tempfile.TemporaryDirectory() as workdir:
        return set_up({**config, 'data': data, 'evaluation': evaluation}, Path(workdir))


class TrainingStep:
    """A callable that runs one training step on the next of some real batches, in a cycle.

    Attributes:
      batches: the batches, on the devices.
      parameters: number of parameters.
      compile_seconds: seconds to compile the step for all row counts of these batches.
    """

    def __init__(self, run: Run, batches: int):
        upcoming = run.iterate_batches_after(0)
        with jax.set_mesh(run.mesh):
            self.batches = [
                place_batch(next(upcoming), run.mesh, run.layout) for _ in range(batches)
            ]
            self._state = jax.jit(run.init, out_shardings=shardings(run.make_abstract_state()))()
            start = time.perf_counter()
            programs = StepPrograms(run)
            self._steps = [programs(self._state, batch) for batch in self.batches]
            self.compile_seconds = time.perf_counter() - start
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        self._calls = 0

    def __call__(self) -> None:
        index = self._calls % len(self.batches)
        self._state, metrics = self._steps[index](self._state, self.batches[index])
        self._calls += 1
        jax.block_until_ready((self._state, metrics))
