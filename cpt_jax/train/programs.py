"""The training step as programs for the devices of a mesh."""

import jax

from cpt_jax.data.batch import Batch
from cpt_jax.mesh import shardings
from cpt_jax.train.setup import Run
from cpt_jax.train.step import TrainState, make_step


class StepPrograms:
    """The step, compiled once for each number of rows that a batch can have (data/batch.py: Layout.fewer)."""

    def __init__(self, run: Run):
        self._step = make_step(run.objective, run.optimizer, run.schedule, run.seed)
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def __call__(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        """(state, batch) -> (state, metrics) for such a batch, compiled if it is the first. The state's memory is used for the next one."""
        rows = batch.tokens_CxRxS.shape[1]
        if rows not in self._compiled:
            step = jax.jit(self._step, donate_argnums=0, out_shardings=(shardings(state), None))
            self._compiled[rows] = step.lower(state, batch).compile()
        return self._compiled[rows]
