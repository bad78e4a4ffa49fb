"""The sections of a config, each of which is the keyword arguments of one function."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cpt_jax.data.equality import EQUALITY_RULES, STRIPPED, resolve_rule
from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runs.config import check_section, get_defaults
from cpt_jax.runs.config_types import check_type
from cpt_jax.runtime.compiler_options import CompilerOptions, parse_compiler_options
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.text.prompt_template import Prompt
from cpt_jax.text.tokenizer import train_tokenizer
from cpt_jax.training.optimizer import make_optimizer

LARGEST = 2**31 - 1  # steps and indices are int32
MAX_ROW_LENGTH = 1_000_000  # a larger number is a mistake
LARGEST_SEED = 2**32 - 1  # that of sentencepiece


@dataclasses.dataclass(frozen=True)
class Data:
    """The `data` section; configs/base.py documents each key."""

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
    token_cache_mib: int = 1024
    prompts: Any = None  # a section with x and y, checked below
    equal_texts: str = STRIPPED
    verify: bool = False

    def __post_init__(self):
        _check_minimum(
            'data',
            self,
            negatives=0,
            rows=0,
            row_choices=1,
            row_length=0,
            threads=1,
            prefetch=1,
            token_cache_mib=0,
        )
        if self.row_length > MAX_ROW_LENGTH:
            raise UserError(
                f'data.row_length={self.row_length}: must be at most {MAX_ROW_LENGTH:,}'
            )
        if self.equal_texts not in ('auto', *EQUALITY_RULES):
            raise UserError(
                f'data.equal_texts={self.equal_texts!r}: choose one of auto, '
                f'{", ".join(EQUALITY_RULES)}'
            )
        if not isinstance(self.prompts or {}, Mapping):
            raise UserError(f'data.prompts={self.prompts!r}: must be a section with x and y')
        for side, prompt in (self.prompts or {}).items():
            if side not in ('x', 'y'):
                raise UserError(f'unknown config key data.prompts.{side}: data.prompts has x, y')
            if not isinstance(prompt, str | None):
                raise UserError(f'data.prompts.{side}={prompt!r}: must be a text')

    @property
    def equality_rule(self) -> str:
        """The rule by which texts are compared, one of EQUALITY_RULES."""
        return resolve_rule({'equal_texts': self.equal_texts})

    @property
    def token_cache_bytes(self) -> int:
        """Memory above which no further tokens are cached."""
        return self.token_cache_mib << 20


def is_step_range(steps: tuple[int, ...]) -> bool:
    """Returns whether a value is a first and a last step."""
    return (
        len(steps) == 2
        and all(isinstance(step, int) for step in steps)
        and 1 <= steps[0] <= steps[1]
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The `train` section; configs/base.py documents each key."""

    steps: int
    batch_pairs: int
    encode_chunks: int = 1
    log_every: int = 10
    epochs: float = 0.0
    profile_steps: tuple[int, ...] = ()
    compiler_options: str = ''
    wandb: str = ''

    def __post_init__(self):
        _check_minimum(
            'train', self, steps=1, batch_pairs=1, encode_chunks=1, log_every=1, epochs=0
        )
        if self.profile_steps and not is_step_range(self.profile_steps):
            raise UserError(
                f'train.profile_steps={self.profile_steps!r}: must be the first and the last step '
                f'to trace, as (10, 12), or ()'
            )
        parse_compiler_options(self.compiler_options)

    @property
    def parsed_compiler_options(self) -> CompilerOptions:
        """XLA's options for the training step, by name."""
        return parse_compiler_options(self.compiler_options)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `evaluation` section; configs/base.py documents each key."""

    every_steps: int
    pairs: int
    times: int = 0
    patience: int = 0

    def __post_init__(self):
        _check_minimum('evaluation', self, every_steps=0, pairs=0, times=0, patience=0)

    @property
    def is_on(self) -> bool:
        """Whether held-out pairs are evaluated during training."""
        return self.every_steps > 0 and self.pairs > 0


# Section name -> function whose keyword arguments the section holds. A key that did not exist when
# an older run began takes this function's default.
SECTION_FUNCTIONS: dict[str, Callable[..., Any]] = {
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
# Keys of `tokenizer` that are not arguments of its function, with their defaults.
_TOKENIZER_KEYS = {'path': '', 'delimiters': 'auto'}
TOP_LEVEL_KEYS = {'objective': str, 'seed': int, 'init_from': str}  # with their types
# Arguments of these functions that the program passes and that are not config keys.
ARGUMENTS_NOT_IN_CONFIG = {
    'tokenizer': ('texts', 'seed', 'bos_and_eos'),
    'prompt': ('demonstrations', 'clean'),
    'model': ('vocab_size',),
    'mesh': ('devices',),
    'optimizer': ('steps',),
    'checkpoint': ('directory', 'tokenizer_file', 'about'),
}


def check_sections(config: Mapping[str, Any]) -> None:
    """Checks that all sections and keys of a config exist, before any data is read.

    Raises:
      UserError: a section or key is unknown or missing, or a section is not a mapping.
    """
    known = {*SECTION_FUNCTIONS, *TOP_LEVEL_KEYS}
    for key in config.keys() - known:
        raise UserError(f'unknown config key {key}: a config has {", ".join(sorted(known))}')
    for key in known - config.keys():
        raise UserError(f'config key {key} is missing: start from configs/base.py')
    for name, kind in TOP_LEVEL_KEYS.items():
        check_type(name, config[name], kind)
    if not 0 <= config['seed'] <= LARGEST_SEED:
        raise UserError(f'seed={config["seed"]}: must be from 0 to {LARGEST_SEED:,}')
    for name, function in SECTION_FUNCTIONS.items():
        if not isinstance(config[name], Mapping):
            raise UserError(f'config key {name}={config[name]!r}: must be a section')
        if name == 'tokenizer':
            for key in _TOKENIZER_KEYS.keys() & config[name].keys():
                check_type(f'{name}.{key}', config[name][key], str)
        section = remove_tokenizer_keys(name, config[name])
        check_section(function, name, section, ARGUMENTS_NOT_IN_CONFIG.get(name, ()))
    if not config['data']['sources']:
        raise UserError('data.sources={}: must have a source')
    for name, source in config['data']['sources'].items():
        check_type(f'data.sources.{name}.kind', source.get('kind'), str | None)


def add_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with defaults for the keys that its sections lack."""
    return dict(config) | {
        name: _get_defaults(name, function) | dict(config[name])
        for name, function in SECTION_FUNCTIONS.items()
    }


def _get_defaults(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    defaults = _TOKENIZER_KEYS if name == 'tokenizer' else {}
    excluded = ARGUMENTS_NOT_IN_CONFIG.get(name, ())
    return defaults | {
        key: value for key, value in get_defaults(function).items() if key not in excluded
    }


def remove_tokenizer_keys(name: str, section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the section without the keys of `tokenizer` that are not arguments of
    `train_tokenizer`: a tokenizer to load, and what is put around texts.
    """
    if name != 'tokenizer':
        return section
    return {key: value for key, value in section.items() if key not in _TOKENIZER_KEYS}


def _check_minimum(section: str, values: object, **minimum: int) -> None:
    for key, lowest in minimum.items():
        value = getattr(values, key)
        if value < lowest:
            raise UserError(f'{section}.{key}={value}: must be {lowest} or more')
        if value > LARGEST:
            raise UserError(f'{section}.{key}={value}: must be at most {LARGEST:,}')
