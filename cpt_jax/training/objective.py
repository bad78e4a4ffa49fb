"""What a run trains for. Everything that differs between the objectives is a method here, so that
neither the setup nor the loop, nor a plan, asks which one it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from cpt_jax.data.batch import Batch, Layout, Tokens
from cpt_jax.data.pairs import Pair, Source
from cpt_jax.data.sources.text import TokenCounter
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.resolve import Origin
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Tokenizer
from cpt_jax.training.sections import Data


class Params(nnx.Module):
    """All that is trained; an objective adds its own parameters to the encoder's."""

    encoder: Encoder


# (parameters, called between batches of texts, and may raise) -> scores of the held-out texts.
# Any: each objective has a Params of its own.
Scorer = Callable[[Any, Callable[[], None]], dict[str, float]]


class HeldOut(NamedTuple):
    """What a run holds out, and how it is read.

    Attributes:
      pairs: the held-out pairs; [] if nothing is held out.
      layout: that of a training step.
    """

    pairs: Sequence[Pair]
    tokenizer: Tokenizer | PromptTokenizer
    data: Data
    layout: Layout
    mesh: jax.sharding.Mesh


class Objective(Protocol):
    """An objective.

    Attributes:
      name: the value of the config key `objective`.
      next_command: what a user runs with the trained model, up to its directory.
      marks_boundaries: whether texts are read between begin and end tokens, for which a trained
        tokenizer needs ids.
      form: form of the loss, for a plan.
    """

    @property
    def name(self) -> str: ...

    @property
    def next_command(self) -> str: ...

    @property
    def marks_boundaries(self) -> bool: ...

    @property
    def form(self) -> str: ...

    def check(self, config: EncoderConfig) -> None:
        """Raises UserError where a model cannot have it."""

    def check_lengths(self, data: Data, config: EncoderConfig, around: int, what: str) -> None:
        """Raises UserError if texts do not fit a row or the model, or if nothing of a text is left
        beside what is put around it.

        Args:
          around: number of ids put around a text.
          what: name of these ids, for the message.
        """

    def inherit_architecture(self, origin: Origin) -> tuple[dict[str, Any], int] | None:
        """Returns the `model` section and the number of ids that a run takes from its origin; None
        if the config's own `model` section counts.
        """

    def load_sources(
        self, sections: Mapping[str, Mapping[str, Any]], split: str, tokenizer: TokenCounter
    ) -> tuple[dict[str, Source], dict[str, float]]:
        """Returns the sources of `data.sources` and their weights, by name."""

    def make_reader(
        self, sources: Sequence[Source], tokenizer: Tokenizer | PromptTokenizer, data: Data
    ) -> Tokens:
        """Returns what turns pairs of these sources into token ids."""

    def with_baseline(self, reader: Tokens, heldout: Sequence[Pair]) -> 'Objective':
        """Returns the objective with whatever its held-out scores are compared with."""

    def own_parameters(self, params: Any) -> dict[str, Any]:
        """Returns the trained parameters beside the encoder, by name."""

    def init(self, config: EncoderConfig, rngs: nnx.Rngs) -> Params:
        """Fresh parameters, the encoder's among them as `encoder`."""

    def __call__(
        self, params: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss and metrics, float32 scalars, of the global batch; with a key there is dropout.
        `pairs` are those that fitted.
        """

    def clip(self, params: Any) -> None:
        """Keeps parameters within their bounds, in place, after a step."""

    def longest(self, data: Data) -> Sequence[int]:
        """The most tokens of each text of a pair."""

    def flops(self, config: EncoderConfig, layout: Layout, pairs: int, lora: LoRA) -> int:
        """Floating-point operations that a step needs; see model/flops.py."""

    def scorer(self, held_out: HeldOut, params: Any) -> Scorer:
        """Returns what scores parameters like these on the held-out pairs."""

    def batch_line(self, pairs: int, data: Data) -> str:
        """What a batch is, for the start of a run."""

    def heldout_line(self, pairs: int) -> str:
        """What is held out, for the start of a run."""

    def figures(self, row: Mapping[str, float]) -> str:
        """The metrics that a progress bar shows."""

    def line(self, row: Mapping[str, float]) -> str:
        """The metrics and held-out scores of a step."""
