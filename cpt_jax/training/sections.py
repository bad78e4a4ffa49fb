"""The sections of a config: each is the keyword arguments of one function."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runs.config import check_section, defaults_of
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.prompt_template import Prompt
from cpt_jax.text.tokenizer import train_tokenizer
from cpt_jax.training.optimizer import make_optimizer


@dataclasses.dataclass(frozen=True)
class Data:
    """The `data` section; configs/base.py comments each key."""

    sources: Mapping[str, Mapping[str, Any]]
    max_tokens_x: int
    max_tokens_y: int
    row_length: int
    negatives: int = 0
    packed: bool = True
    rows: int = 0
    row_choices: int = 1
    threads: int = 2
    prefetch: int = 8

    def __post_init__(self):
        _check_minimum(
            'data', self, negatives=0, rows=0, row_choices=1, row_length=1, threads=1, prefetch=1
        )


@dataclasses.dataclass(frozen=True)
class Train:
    """The `train` section."""

    steps: int
    batch_pairs: int
    encode_chunks: int = 1
    log_every: int = 10

    def __post_init__(self):
        _check_minimum('train', self, steps=1, batch_pairs=1, encode_chunks=1, log_every=1)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `evaluation` section."""

    every_steps: int
    pairs: int

    def __post_init__(self):
        _check_minimum('evaluation', self, every_steps=0, pairs=0)

    @property
    def is_on(self) -> bool:
        """Whether held-out pairs are looked at during training."""
        return self.every_steps > 0 and self.pairs > 0


# Section -> the function whose keyword arguments it is. A key that an older run did not have takes
# the default of this function.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    'tokenizer': train_tokenizer,
    'prompt': Prompt,
    'data': Data,
    'model': EncoderConfig,
    'lora': LoRA,
    'mesh': make_mesh,
    'loss': InfoNCE,
    'optimizer': make_optimizer,
    'train': Train,
    'evaluation': Evaluation,
    'checkpoint': Checkpoints,
}
KEYS = ('objective', 'seed', 'init_from')  # beside the sections
# Arguments of these functions that no config gives.
GIVEN = {
    'tokenizer': ('texts', 'seed', 'boundaries'),
    'prompt': ('demonstrations', 'clean'),
    'model': ('vocab_size',),
    'mesh': ('devices',),
    'optimizer': ('steps',),
    'checkpoint': ('directory', 'tokenizer_file', 'about'),
}


def check_sections(config: Mapping[str, Any]) -> None:
    """Raises UserError for a section or key that a config does not have, or lacks: all of them are
    looked at before anything is read.
    """
    known = {*FUNCTIONS, *KEYS}
    for key in config.keys() - known:
        raise UserError(f'unknown config key {key}: a config has {", ".join(sorted(known))}')
    for key in known - config.keys():
        raise UserError(f'config key {key} is missing: begin a config with configs/base.py')
    for name, function in FUNCTIONS.items():
        if not isinstance(config[name], Mapping):
            raise UserError(f'config key {name}={config[name]!r}: must be a section')
        check_section(function, name, _without_path(name, config[name]), GIVEN.get(name, ()))


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with the defaults of the keys that its sections lack."""
    return dict(config) | {
        name: _defaults(name, function) | dict(config[name]) for name, function in FUNCTIONS.items()
    }


def _defaults(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    found = {'path': ''} if name == 'tokenizer' else {}
    given = GIVEN.get(name, ())
    return found | {key: value for key, value in defaults_of(function).items() if key not in given}


def _without_path(name: str, section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `tokenizer` section also has the path of one, which then is not trained."""
    if name != 'tokenizer':
        return section
    return {key: value for key, value in section.items() if key != 'path'}


def _check_minimum(section: str, values: object, **minimum: int) -> None:
    for key, lowest in minimum.items():
        if getattr(values, key) < lowest:
            raise UserError(f'{section}.{key}={getattr(values, key)}: must be {lowest} or more')
