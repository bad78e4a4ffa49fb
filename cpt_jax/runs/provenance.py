"""The metadata stored in every checkpoint of a run: what the run was made from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cpt_jax.runs.config import fill_legacy_defaults


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen weights of a LoRA run.

    Attributes:
      path: absolute path of a pretrained directory, or `run@step`.
      fingerprint: digest of a pretrained directory's weights, or the time when a checkpoint was
        saved.
    """

    path: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The config, code, data and origin of a run.

    Attributes:
      config: all sections of the config; `model` is the architecture that was trained.
      tokenizer: fingerprint of the tokenizer.
      sources: name of each source -> fingerprint of its data.
      code: version of the code that wrote the checkpoint.
      inherits: whether `config['model']` came from the run's origin; None for runs that did not
        store this.
      begin: ids at the beginning of every text, if the run comes from a language model; None
        otherwise.
      pretrained: config.json of the pretrained model that the run comes from, directly or through
        other runs; None if there is none.
      base: base of the adapters; None if the run does not train adapters.
      own_tokenizer: `PretrainedTokenizer.settings` of a run whose texts have the special tokens and
        prompts of a pretrained model; None if they have delimiters or a template.
    """

    config: Mapping[str, Any]
    tokenizer: str
    sources: Mapping[str, str]
    code: str
    inherits: bool | None = False
    begin: list[int] | None = None
    pretrained: Mapping[str, Any] | None = None
    base: Base | None = None
    own_tokenizer: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'Provenance':
        """Returns the provenance in a checkpoint's metadata.

        Values that an older run did not store are filled in with its behaviour.
        """
        base = stored.get('base')
        return cls(
            config=fill_legacy_defaults(stored['config']),
            tokenizer=stored.get('tokenizer', ''),
            sources=stored.get('sources', {}),
            code=stored.get('code', ''),
            inherits=stored.get('inherits'),
            begin=stored.get('begin'),
            pretrained=stored.get('pretrained'),
            base=Base(**base) if base else None,
            own_tokenizer=stored.get('own_tokenizer'),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the metadata to store, without `base` and `own_tokenizer` if they are None."""
        stored = dataclasses.asdict(self)
        for key in ('base', 'own_tokenizer'):
            if stored[key] is None:
                del stored[key]
        return stored

    @property
    def objective(self) -> str:
        """Name of the objective."""
        return self.config['objective']

    @property
    def template(self) -> str:
        """The template around every text; '' if texts are enclosed in delimiters."""
        return self.config['prompt']['template']

    @property
    def closing(self) -> str:
        """The config key `tokenizer.closing`, 'own' or 'shared'."""
        return self.config['tokenizer']['closing']

    @property
    def has_adapters(self) -> bool:
        """Whether the checkpoints contain only adapters of a frozen base."""
        return bool(self.config['lora']['rank'])
