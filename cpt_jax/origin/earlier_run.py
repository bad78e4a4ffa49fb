"""A checkpoint of a run, from which to start another run, embed or export."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import Dense, make_dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.pretrained import is_pretrained
from cpt_jax.runs import checkpoint
from cpt_jax.runs.code_version import get_code_version
from cpt_jax.runs.config import build
from cpt_jax.runs.provenance import Base, Provenance
from cpt_jax.runs.reference import find_checkpoint, use_newest_intact
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import assign_mesh_shardings
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer, restore_tokenizer
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import Tokenizer, parse_tokenizer_file

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """A checkpoint of a run. Its arrays are read only by the methods that load them.

    Attributes:
      directory: folder that contains the checkpoint: checkpoints/ of the run, or best/.
      step: number of training steps.
      provenance: metadata stored in the checkpoint.
      reference: model reference from the user, for messages.
      flag: flag or key that the reference comes from, for messages.
      base_path: where the base of its adapters is now; '': where it was in training.
    """

    directory: Path
    step: int
    provenance: Provenance
    reference: str
    flag: str
    base_path: str = ''

    @property
    def run_dir(self) -> RunDir:
        """The run's directory."""
        return RunDir(self.directory.parent)

    @property
    def name(self) -> str:
        """`run@step`, where `run` is the name of the run's directory."""
        return f'{self.directory.parent.name}@{self.step}'

    @property
    def saved(self) -> str:
        """The time when the checkpoint was written, as ISO 8601 in UTC."""
        return checkpoint.read_save_time(self.directory, self.step)

    @property
    def is_language_model(self) -> bool:
        """Whether the run was trained on next tokens, and so without delimiters."""
        return self.provenance.objective == 'lm'

    @property
    def inherits_architecture(self) -> bool:
        """Whether the `model` section came from the run's origin.

        Older runs did not store this. They inherited the section only from pretrained directories.
        """
        if self.provenance.inherits is None:
            return is_pretrained(self.provenance.config['init_from'])
        return self.provenance.inherits

    @property
    def bos_ids(self) -> list[int] | None:
        """The ids at the beginning of every text, if the run is a language model or comes from one.

        None otherwise.
        """
        if self.is_language_model:
            tokenizer = self.load_tokenizer()
            # A language model reads texts as they are.
            assert not isinstance(tokenizer, PretrainedTokenizer)
            return [tokenizer.bos_and_eos[0]]
        return self.provenance.begin

    @property
    def pretrained_config(self) -> Any:
        """The config.json of the pretrained model that the run comes from, or None."""
        return self.provenance.pretrained

    @property
    def model_section_and_vocab_size(self) -> tuple[dict[str, Any], int]:
        """The `model` section of the run, and the vocabulary size."""
        config = self.provenance.config
        return dict(config['model']), config['tokenizer']['vocab_size']

    @property
    def lora(self) -> LoRA:
        """The adapters' settings; the rank is 0 if the run has no adapters.

        Raises:
          UserError: the run was trained with newer code, which has other keys.
        """
        return self._build_section(LoRA, 'lora', self.provenance.config['lora'])

    def encoder_config(self, vocab_size: int, **changed: Any) -> EncoderConfig:
        """Returns the architecture that was trained, with the values in `changed` replaced.

        Raises:
          UserError: the run was trained with newer code, which has other keys.
        """
        section = self.provenance.config['model'] | changed
        return self._build_section(EncoderConfig, 'model', section, vocab_size=vocab_size)

    def _build_section(
        self, function: Callable[..., T], name: str, section: Mapping[str, Any], **given: Any
    ) -> T:
        """Calls `build`, and adds the versions of the code to its errors."""
        try:
            return build(function, name, section, **given)
        except UserError as error:
            raise UserError(
                f'{self.flag} {self.reference}: {error} (the run was trained with version '
                f'{self.provenance.code}; this is {get_code_version()})'
            ) from None

    def load_tokenizer(self) -> Tokenizer | PretrainedTokenizer:
        """Returns the tokenizer stored in the checkpoint: with delimiters, or with the special
        tokens and prompts of a pretrained model.
        """
        name, content = checkpoint.read_tokenizer_file(self.directory, self.step)
        if self.provenance.own_tokenizer is not None:
            return restore_tokenizer(content, self.provenance.own_tokenizer)
        return parse_tokenizer_file(name, content, self.provenance.closing)

    def get_vocab_size(self, tokenizer: TextTokenizer) -> int:
        """Returns the number of ids of the model. That of a pretrained model may have more than its
        tokenizer.
        """
        if isinstance(tokenizer, PretrainedTokenizer):
            return self.provenance.config['tokenizer']['vocab_size']
        return tokenizer.vocab_size

    def load_params(self, abstract: T) -> T:
        """Returns parameters of the run.

        Args:
          abstract: tree of ShapeDtypeStructs with the shardings of the parameters to load.

        Raises:
          UserError: the checkpoint is damaged, or its parameters have other shapes.
        """
        try:
            return checkpoint.load_params(self.directory, self.step, abstract)
        except KeyError as error:
            raise UserError(
                f'{self.flag}={self.reference}: its model does not have the shapes of this config: '
                f'{error.args[0]}'
            ) from error

    def load_encoder(self, config: EncoderConfig, mesh: jax.sharding.Mesh) -> Encoder:
        """Returns the encoder of a run without adapters."""
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0)))
            abstract = assign_mesh_shardings(shapes, mesh)
            return self.load_params({'encoder': abstract})['encoder']

    def load_dense(self, config: EncoderConfig, mesh: jax.sharding.Mesh) -> tuple[Dense, ...]:
        """Returns the Dense modules that were trained with the encoder, () if there are none."""
        if not config.dense:
            return ()
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(
                lambda: nnx.List(make_dense(config.dense, config.embedding_width, nnx.Rngs(0)))
            )
            abstract = assign_mesh_shardings(shapes, mesh)
            return tuple(self.load_params({'dense': abstract})['dense'])

    def describe_base(self) -> Base:
        """Returns path and save time of the checkpoint, for runs with adapters of it.

        Raises:
          UserError: the checkpoint itself contains only adapters.
        """
        self.check_has_no_adapters()
        return Base(f'{self.directory.parent}@{self.step}', self.saved)

    def check_has_no_adapters(self) -> None:
        """Raises UserError if the checkpoint contains only adapters: no run can start from it."""
        if self.provenance.has_adapters:
            raise UserError(
                f'{self.flag}={self.reference}: its checkpoints contain only adapters: export the '
                f'run (launch/export.py) and start from the export'
            )


def find_run(reference: str, flag: str, base_path: str = '') -> EarlierRun:
    """Returns the checkpoint of a model reference.

    Args:
      reference: a run (its latest step whose metadata can be read), `run@step` or `run@best:TASK`.
      flag: flag or key that the reference comes from, for messages.
      base_path: see EarlierRun.

    Raises:
      UserError: there is no such run or checkpoint, or it is damaged.
    """
    directory, step = find_checkpoint(reference, flag)

    def read(step: int) -> EarlierRun:
        provenance = _parse_metadata(checkpoint.read_metadata(directory, step), directory, step)
        return EarlierRun(directory, step, provenance, reference, flag, base_path)

    return use_newest_intact(reference, directory, step, read)


def load_intact(run: EarlierRun, load: Callable[[EarlierRun], T]) -> T:
    """Returns what `load` returns for the run's checkpoint, or for an older one if that is damaged
    and the reference names no step. All processes load the same checkpoint.

    Raises:
      DamagedCheckpoint: see `use_newest_intact`.
    """

    def load_step(step: int) -> T:
        if step == run.step:
            return load(run)
        metadata = checkpoint.read_metadata(run.directory, step)
        provenance = _parse_metadata(metadata, run.directory, step)
        return load(dataclasses.replace(run, step=step, provenance=provenance))

    return use_newest_intact(run.reference, run.directory, run.step, load_step)


def _parse_metadata(metadata: Mapping[str, Any], directory: Path, step: int) -> Provenance:
    """Returns the provenance in a checkpoint's metadata. Raises UserError if it is damaged."""
    try:
        return Provenance.from_json(metadata)
    except ValueError as error:
        raise UserError(
            f'{directory / str(step)} is damaged (its metadata: {error}); use another checkpoint'
        ) from None


def find_latest_checkpoint(run_dir: RunDir) -> EarlierRun | None:
    """Returns the newest checkpoint of a run whose metadata can be read; None if there is none."""
    latest = checkpoint.read_latest_metadata(run_dir.checkpoints)
    if latest is None:
        return None
    step, metadata = latest
    provenance = _parse_metadata(metadata, run_dir.checkpoints, step)
    return EarlierRun(run_dir.checkpoints, step, provenance, str(run_dir.path), '--workdir')
