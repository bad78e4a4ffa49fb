"""The training objective: the interface that setup, loop and plan use.

Everything that differs between objectives is a method of `Objective`, so that no other module needs
to know which objective a run has.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from cpt_jax.data.batch import Batch, Layout
from cpt_jax.data.cutting import TokenCounter
from cpt_jax.data.pairs import Pair, Source
from cpt_jax.data.token_reader import TokenReader
from cpt_jax.loss.targets import TargetSizes
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.resolve import Origin
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.training.heldout_scores import MainScore
from cpt_jax.training.sections import Data


class Params(nnx.Module):
    """All trained parameters: those of the encoder, and those that an objective adds."""

    encoder: Encoder


# Function of (parameters, callback) that returns the held-out scores. The callback is called
# between batches of texts, and may raise an exception to stop the evaluation. The type of the
# parameters is Any because each objective has its own subclass of Params.
Scorer = Callable[[Any, Callable[[], None]], dict[str, float]]


class HeldOut(NamedTuple):
    """Held-out pairs, and all that is needed to read and embed them.

    Attributes:
      pairs: the held-out pairs; [] if none are held out.
      tokenizer: the run's tokenizer.
      data: the `data` section of the config.
      layout: layout of a training step.
      mesh: device mesh.
    """

    pairs: Sequence[Pair]
    tokenizer: TextTokenizer
    data: Data
    layout: Layout
    mesh: jax.sharding.Mesh


class Objective(Protocol):
    """A loss with its parameters, data, held-out scores and messages.

    Attributes:
      name: value of the config key `objective`.
      next_command: command that a user runs next with the trained model, up to the run's directory.
      marks_boundaries: whether texts have begin-of-text and end-of-text tokens, for which a newly
        trained tokenizer needs ids.
      form: form of the loss, shown in a plan.
      main_score: held-out score that decides which checkpoint is the best.
    """

    @property
    def name(self) -> str: ...

    @property
    def next_command(self) -> str: ...

    @property
    def marks_boundaries(self) -> bool: ...

    @property
    def form(self) -> str: ...

    @property
    def main_score(self) -> MainScore: ...

    def check_model(self, config: EncoderConfig) -> None:
        """Raises UserError if a model with this config cannot be trained with the objective."""

    def refuse_unused_keys(self) -> None:
        """Raises UserError if a key of the objective is set that has no effect.

        Only new runs are checked: a run of an earlier version keeps its config and goes on.
        """

    def check_origin(self, origin: Origin) -> None:
        """Raises UserError if the objective's own parameters cannot be those of the origin."""

    def check_lengths(self, data: Data, config: EncoderConfig, around: int, what: str) -> None:
        """Raises UserError if texts do not fit a row or the model, or if the ids around a text
        leave no room for the text itself.

        Args:
          data: the `data` section of the config.
          config: config of the encoder.
          around: number of ids put around a text.
          what: name of these ids, for the message.
        """

    def inherit_architecture(self, origin: Origin) -> tuple[dict[str, Any], int] | None:
        """Returns the `model` section and the vocabulary size that a run takes from its origin;
        None if it uses the `model` section of its own config.
        """

    def load_sources(
        self, data: Mapping[str, Any], split: str, tokenizer: TokenCounter
    ) -> tuple[dict[str, Source], dict[str, float]]:
        """Returns the sources of the `data` section and their weights, by name."""

    def make_reader(
        self, sources: Sequence[Source], tokenizer: TextTokenizer, data: Data
    ) -> TokenReader:
        """Returns a reader that converts pairs of these sources to token ids."""

    def with_baseline(self, reader: TokenReader, heldout: Sequence[Pair]) -> 'Objective':
        """Returns the objective with a baseline for its held-out scores, if it has any."""

    def get_own_parameters(self, params: Any) -> dict[str, Any]:
        """Returns the trained parameters, other than the encoder's, that a run takes from an
        earlier run that it starts from, by name.
        """

    def init(self, config: EncoderConfig, rngs: nnx.Rngs) -> Params:
        """Returns randomly initialized parameters."""

    def __call__(
        self, params: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss and the metrics of the global batch, float32 scalars.

        The metric `pairs` is the number of pairs that fit into the rows of the batch.

        Args:
          params: parameters as returned by `init`.
          batch: the global batch.
          key: random key for dropout; None disables dropout.
        """

    def clip(self, params: Any) -> None:
        """Clips parameters to their bounds, in place, after an optimizer update."""

    def get_max_lengths(self, data: Data) -> Sequence[int]:
        """Returns the maximum number of tokens of each text of a pair."""

    def count_ids_per_text(self, data: Data) -> int:
        """Returns the number of ids by which a text of a batch is compared with others."""

    def measure_targets(self, data: Data) -> TargetSizes:
        """Returns the sizes of what the losses compare vectors with, without reading pairs.

        Raises:
          UserError: a directory of vectors cannot be read.
        """

    def count_step_flops(
        self,
        config: EncoderConfig,
        tokens: int,
        row_length: float,
        pairs: int,
        texts: int,
        lora: LoRA,
    ) -> float:
        """Returns the floating-point operations that a step needs; see model/flops.py.

        Args:
          config: architecture of the encoder.
          tokens: columns of all rows of a step, or its tokens without padding.
          row_length: keys that a query attends to: columns of a row, or the mean over tokens of the
            length of their texts.
          pairs: pairs of the global batch.
          texts: texts of a pair: x, y and hard negatives.
          lora: the `lora` section.
        """

    def make_scorer(self, held_out: HeldOut, params: Any) -> Scorer:
        """Returns the function that computes held-out scores, for parameters shaped as `params`."""

    def describe_batch(self, pairs: int, data: Data) -> str:
        """Returns a description of a batch, for the startup table."""

    def describe_heldout(self, pairs: int) -> str:
        """Returns a description of the held-out data, for the startup table."""

    def format_progress(self, row: Mapping[str, float]) -> str:
        """Returns the metrics of a row as text for the progress bar."""

    def format_heldout(self, scores: Mapping[str, float]) -> str:
        """Returns held-out scores as text."""

    def format_scores(self, row: Mapping[str, float]) -> str:
        """Returns the metrics and held-out scores of a row as text."""
