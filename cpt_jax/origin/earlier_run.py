"""A checkpoint of a run, as something to start from, embed with or export."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.pretrained import is_pretrained
from cpt_jax.runs import checkpoint
from cpt_jax.runs.code_version import code_version
from cpt_jax.runs.config import build
from cpt_jax.runs.provenance import Base, Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import on_mesh
from cpt_jax.text.tokenizer import Tokenizer, tokenizer_from_file

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """A checkpoint of a run; its arrays are read when they are asked for.

    Attributes:
      directory: the folder of the checkpoint: checkpoints/ of the run, or best/.
      step: number of training steps.
      provenance: metadata stored in the checkpoint.
      reference: what the user wrote, for messages.
      flag: the flag or key that the user wrote it for.
    """

    directory: Path
    step: int
    provenance: Provenance
    reference: str
    flag: str

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.directory.parent)

    @property
    def name(self) -> str:
        """`run@step`, by the name of the run's directory."""
        return f'{self.directory.parent.name}@{self.step}'

    @property
    def saved(self) -> str:
        """Time when the checkpoint was written, UTC."""
        return checkpoint.saved_at(self.directory, self.step)

    @property
    def is_language_model(self) -> bool:
        """Whether the run predicted next tokens, so that it has never read the delimiters."""
        return self.provenance.objective == 'lm'

    @property
    def inherits_architecture(self) -> bool:
        """Whether the `model` section came from the run's origin; runs from before this was stored
        inherited from a pretrained directory alone.
        """
        if self.provenance.inherits is None:
            return is_pretrained(self.provenance.config['init_from'])
        return self.provenance.inherits

    @property
    def bos_ids(self) -> list[int] | None:
        """The ids that begin every text of the language model that the run is or comes from; None
        if it comes from no language model.
        """
        if self.is_language_model:
            return [self.load_tokenizer().boundaries[0]]
        return self.provenance.begin

    @property
    def pretrained_config(self) -> Any:
        """config.json of the pretrained model that the run comes from, or None."""
        return self.provenance.pretrained

    @property
    def architecture(self) -> tuple[dict[str, Any], int]:
        """The `model` section of the run and its number of ids."""
        config = self.provenance.config
        return dict(config['model']), config['tokenizer']['vocab_size']

    @property
    def lora(self) -> LoRA:
        """The adapters of the run; of rank 0 where it has none.

        Raises:
          UserError: newer code has trained it.
        """
        return self._build(LoRA, 'lora', self.provenance.config['lora'])

    def encoder_config(self, vocab_size: int, **changed: Any) -> EncoderConfig:
        """Returns the architecture that was trained, with other values of some keys.

        Raises:
          UserError: newer code has trained it.
        """
        section = self.provenance.config['model'] | changed
        return self._build(EncoderConfig, 'model', section, vocab_size=vocab_size)

    def _build(
        self, function: Callable[..., T], name: str, section: Mapping[str, Any], **given: Any
    ) -> T:
        try:
            return build(function, name, section, **given)
        except UserError as error:
            raise UserError(
                f'{self.flag} {self.reference}: {error} (the run is of code '
                f'{self.provenance.code}, this is {code_version()})'
            ) from None

    def load_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer stored in the checkpoint."""
        name, content = checkpoint.read_tokenizer_file(self.directory, self.step)
        return tokenizer_from_file(name, content, self.provenance.closing)

    def load_params(self, abstract: T) -> T:
        """Returns parameters of the run, on the shardings of `abstract`.

        Raises:
          UserError: the checkpoint is damaged, or its model has other shapes.
        """
        try:
            return checkpoint.load_params(self.directory, self.step, abstract)
        except KeyError as error:
            raise UserError(
                f'{self.flag}={self.reference}: its model is not of the shape of this config: '
                f'{error.args[0]}'
            ) from error

    def load_encoder(self, config: EncoderConfig, mesh: jax.sharding.Mesh) -> Encoder:
        """Returns the encoder of a run whose parameters were all trained."""
        with jax.set_mesh(mesh):
            abstract = on_mesh(jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))), mesh)
            return self.load_params({'encoder': abstract})['encoder']

    def describe_base(self) -> Base:
        """Returns what identifies the checkpoint as the base of adapters.

        Raises:
          UserError: it holds adapters itself.
        """
        self.refuse_adapters()
        return Base(f'{self.directory.parent}@{self.step}', self.saved)

    def refuse_adapters(self) -> None:
        """Raises UserError if the checkpoint holds adapters alone: nothing can start from it."""
        if self.provenance.has_adapters:
            raise UserError(
                f'{self.flag}={self.reference}: its checkpoints hold adapters alone; start from '
                f'an export of it (launch/export.py)'
            )


def find_run(reference: str, flag: str) -> EarlierRun:
    """Returns the checkpoint of a model reference: a run (its latest step), `run@step` or
    `run@best:TASK`.

    Raises:
      UserError: there is no such run or checkpoint, or it is damaged.
    """
    directory, step = checkpoint.find(reference, flag)
    provenance = Provenance.from_json(checkpoint.read_about(directory, step))
    return EarlierRun(directory, step, provenance, reference, flag)


def find_latest(run_dir: RunDir) -> EarlierRun | None:
    """Returns the newest checkpoint of a run whose metadata can be read; None if there is none."""
    latest = checkpoint.latest_about(run_dir.checkpoints)
    if latest is None:
        return None
    step, about = latest
    reference = str(run_dir.path)
    return EarlierRun(
        run_dir.checkpoints, step, Provenance.from_json(about), reference, '--workdir'
    )
