"""The metadata stored in every checkpoint of a run: what the run was made from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cpt_jax.runs.config import fill_legacy_defaults
from cpt_jax.storage.json_checks import (
    FLAG,
    OBJECT,
    TEXT,
    Allowed,
    allow_integers,
    allow_list,
    allow_null,
    allow_object,
    format_value,
)

_SECTIONS = ('data', 'model', 'tokenizer', 'loss', 'optimizer', 'train', 'prompt', 'lora')
_TEXTS = allow_object(TEXT)
_STORED_KEYS = {
    'config': Allowed(
        'the sections of a config',
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(value.get(name), dict | None) for name in _SECTIONS)
            and isinstance((value.get('data') or {}).get('sources', {}), dict)
            and isinstance(value.get('init_from', ''), str)
        ),
    ),
    'tokenizer': TEXT,
    'sources': _TEXTS,
    'code': TEXT,
    'inherits': allow_null(FLAG),
    'begin': allow_null(allow_list(allow_integers(0, 2**31))),
    'pretrained': allow_null(OBJECT),
    'base': allow_null(
        Allowed(
            'an object of path and fingerprint',
            lambda value: _TEXTS.accepts(value) and {*value} == {'path', 'fingerprint'},  # type: ignore[misc]
        )
    ),
    'own_tokenizer': allow_null(OBJECT),
    'cleaned': OBJECT,
    'merged': allow_null(allow_list(OBJECT)),
    'agrees_on_rows': FLAG,
}


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
      sources: name of each source -> fingerprint of its data; config key of each directory of
        vectors, such as 'loss.guide' -> fingerprint of the vectors.
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
      cleaned: name of each source that launch/prepare.py wrote -> test sets whose texts were
        removed from it, by name, with `texts`, `searched` and `queries_only` (data/prepared.py), or
        names alone in older runs; None if none were searched for.
      merged: model, weight, method and init_from (a list, see `list_origins`) of each part that
        launch/merge.py merged; None if the parameters were trained. Runs merged by earlier versions
        have no init_from.
      agrees_on_rows: whether several processes agree on the number of rows of each batch. In
        earlier runs every batch had the maximum.
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
    cleaned: Mapping[str, Mapping[str, Any] | list[str] | None] = dataclasses.field(
        default_factory=dict
    )
    merged: list[dict[str, Any]] | None = None
    agrees_on_rows: bool = False

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'Provenance':
        """Returns the provenance in a checkpoint's metadata.

        Values that an older run did not store are filled in with its behaviour.

        Raises:
          ValueError: a value is missing or of another type.
        """
        for key, allowed in _STORED_KEYS.items():
            if key in stored and not allowed.accepts(stored[key]):
                raise ValueError(
                    f'{key}={format_value(stored[key])}: must be {allowed.description}'
                )
        if 'config' not in stored:
            raise ValueError("no 'config'")
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
            cleaned=stored.get('cleaned', {}),
            merged=stored.get('merged'),
            agrees_on_rows=stored.get('agrees_on_rows', False),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the metadata to store, without keys that earlier versions do not know if they are
        empty.
        """
        stored = dataclasses.asdict(self)
        for key in ('base', 'own_tokenizer', 'merged'):
            if stored[key] is None:
                del stored[key]
        for key in ('cleaned', 'agrees_on_rows'):
            if not stored[key]:
                del stored[key]
        return stored

    def list_origins(self) -> list[str]:
        """Returns the model that training started from; of a merged run, those of all its parts."""
        own = [self.config['init_from']]
        found = own
        if self.merged:
            found = [origin for part in self.merged for origin in part.get('init_from', own)]
        return [*dict.fromkeys(filter(None, found))]

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
