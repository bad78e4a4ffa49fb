"""What a run trains for: the one choice that a step, the loop and a plan take as given."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import jax
from flax import nnx

from cpt_jax.data.batch import Batch, Layout
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.lora import LoRA
from cpt_jax.model.shape import Shape

if TYPE_CHECKING:
    from cpt_jax.train.setup import Data, Run


class Params(Protocol):
    """All that is trained: an nnx module."""

    encoder: Encoder


# (parameters, called between batches of texts, and may raise) -> scores of the held-out texts
Scorer = Callable[[Params, Callable[[], None]], dict[str, float]]


class Objective(Protocol):
    """An objective.

    Attributes:
      name: in a config.
      form: of its loss, in a plan.
    """

    name: str
    form: str

    def check(self, shape: Shape) -> None:
        """Raises UserError where a model cannot have it."""

    def init(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """Fresh parameters, the encoder's among them as `encoder`."""

    def __call__(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss and metrics, float32 scalars, of the global batch; with a key there is dropout. `pairs` are those that fitted."""

    def clip(self, params: Params) -> None:
        """Keeps parameters within their bounds, in place, after a step."""

    def longest(self, data: 'Data') -> Sequence[int]:
        """The most tokens of each text of a pair."""

    def flops(self, shape: Shape, layout: Layout, pairs: int, lora: LoRA) -> int:
        """Floating-point operations that a step needs; see model/flops.py."""

    def scorer(self, run: 'Run', params: Params) -> Scorer:
        """What scores parameters like these on the run's held-out texts."""

    def batch_line(self, pairs: int, data: 'Data') -> str:
        """What a batch is, for the start of a run."""

    def heldout_line(self, pairs: int) -> str:
        """What is held out, for the start of a run."""

    def figures(self, row: Mapping[str, float]) -> str:
        """The metrics that a progress bar shows."""

    def line(self, row: Mapping[str, float]) -> str:
        """The metrics and held-out scores of a step."""
