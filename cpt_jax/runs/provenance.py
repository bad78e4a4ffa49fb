"""Where a checkpoint comes from: the metadata stored in every checkpoint of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cpt_jax.runs.config import with_meaning_before


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen weights beside which a LoRA run trains its adapters.

    Attributes:
      path: absolute path of a pretrained directory, or `run@step`.
      fingerprint: digest of a pretrained directory's weights, or the time a checkpoint was saved.
    """

    path: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run was made of.

    Attributes:
      config: all sections, with the architecture that was trained in `model`.
      tokenizer: fingerprint of the tokenizer.
      sources: source -> fingerprint of its data.
      code: version of the code that wrote the checkpoint.
      inherits: whether `config['model']` came from the run's origin; None for runs from before this
        was stored.
      begin: ids that begin every text of the language model the run comes from; None if it comes
        from no language model.
      pretrained: config.json of the pretrained model the run comes from, directly or over other
        runs; None if it comes from none.
      base: what the adapters belong to; None unless the run trains adapters.
    """

    config: Mapping[str, Any]
    tokenizer: str
    sources: Mapping[str, str]
    code: str
    inherits: bool | None = False
    begin: list[int] | None = None
    pretrained: Mapping[str, Any] | None = None
    base: Base | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'Provenance':
        """Returns the provenance of a checkpoint's metadata; what an older run did not write is
        filled in with what it meant.
        """
        base = stored.get('base')
        return cls(
            config=with_meaning_before(stored['config']),
            tokenizer=stored.get('tokenizer', ''),
            sources=stored.get('sources', {}),
            code=stored.get('code', ''),
            inherits=stored.get('inherits'),
            begin=stored.get('begin'),
            pretrained=stored.get('pretrained'),
            base=Base(**base) if base else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the metadata to store; `base` is left out where there is none."""
        stored = dataclasses.asdict(self)
        if self.base is None:
            del stored['base']
        return stored

    @property
    def objective(self) -> str:
        """Name of the objective."""
        return self.config['objective']

    @property
    def template(self) -> str:
        """The template that texts stood in; '' if they stood between delimiters."""
        return self.config['prompt']['template']

    @property
    def closing(self) -> str:
        """`tokenizer.closing`: how the closing delimiters of the sides differ."""
        return self.config['tokenizer']['closing']

    @property
    def has_adapters(self) -> bool:
        """Whether the checkpoints hold adapters alone, beside a base."""
        return bool(self.config['lora']['rank'])
