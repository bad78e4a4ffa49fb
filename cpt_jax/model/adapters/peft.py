"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors beside a base
that others have too.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Family
from cpt_jax.model.families.tensors import Tensor
from cpt_jax.model.formats.safetensors_files import Files, opened
from cpt_jax.runtime.errors import UserError

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_OUTER = 'base_model.model.'  # PEFT's names of the module that it wraps
_TOKENS = '.token_adapter.trainable_tokens_delta'
# Keys of adapter_config.json that are read here, or that say how it was trained and not what it
# computes; others must be empty.
_KNOWN = {
    'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'bias', 'corda_config',
    'ensure_weight_tying', 'eva_config',
    'exclude_modules', 'fan_in_fan_out', 'inference_mode', 'init_lora_weights', 'layers_pattern',
    'layers_to_transform', 'loftq_config',
    'lora_alpha', 'lora_dropout', 'lora_ga_config', 'megatron_core', 'peft_type', 'peft_version',
    'qalora_group_size', 'r', 'rank_pattern',
    'revision', 'runtime_config', 'target_modules', 'task_type', 'trainable_token_indices',
    'use_rslora',
}  # fmt: skip
# Ways to begin that leave the base as it was; PiSSA, OLoRA, CorDA and LoftQ take what they begin
# with out of it.
_BEGINNINGS = (None, True, False, 'gaussian', 'eva', 'orthogonal')


class _Delta(NamedTuple):
    """Of one linear layer: scale * b @ a is added to torch's [out, in]."""

    a_RxI: np.ndarray
    b_OxR: np.ndarray
    scale: float


class AdaptedFiles(Files):
    """The tensors of a base with an adapter merged into them, each in the dtype of its file."""

    def __init__(self, base: Files, family: Family, directory: Path):
        """Reads the adapter.

        Raises:
          UserError: it has parts that are no LoRA of linear layers, or is for another base.
        """
        config = read_config(directory)
        self._base, self._transposed, self._adapter = base, family.transposed, directory / WEIGHTS
        self.names = base.names
        bare = {_without(family, name): name for name in base.names}
        self._deltas: dict[str, _Delta] = {}
        self._rows: dict[str, tuple[list[int], np.ndarray]] = {}
        with opened(self._adapter) as file:
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
        for name in sorted(tensors):
            module = _without(family, name.removeprefix(_OUTER))
            if module.endswith('.lora_A.weight'):
                module = module.removesuffix('.lora_A.weight')
                b = name.replace('.lora_A.', '.lora_B.')
                where = bare.get(f'{module}.weight')
                if where and b in tensors:
                    self._deltas[where] = _Delta(
                        tensors[name], tensors[b], _scale(config, module, len(tensors[name]))
                    )
                    continue
                ignored = f'{module}.weight' in family.passed_over  # the head that foretells tokens
            elif module.endswith(_TOKENS):
                where, ignored = bare.get(module.removesuffix(_TOKENS) + '.weight'), False
                if where:
                    self._rows[where] = _indices(config), tensors[name]
                    continue
            else:
                ignored = (
                    module.endswith('.lora_B.weight')
                    and name.replace('.lora_B.', '.lora_A.') in tensors
                )
            if not ignored:
                raise UserError(
                    f'{self._adapter}: {name} is no LoRA of a linear layer of '
                    f'{base.paths[0].parent}: it is of another base'
                )

    def read(self, name: str) -> np.ndarray:
        """One tensor, merged."""
        array = self._base.read(name)
        if name in self._rows:
            ids, rows = self._rows[name]
            # Of the others the base's own tokenizer makes none.
            here = [place for place, i in enumerate(ids) if i < len(array)]
            array = array.copy()
            array[[ids[place] for place in here]] = rows[here]
        if name not in self._deltas:
            return array
        a, b, scale = self._deltas[name]
        delta = (b @ a).T if self._transposed else b @ a
        if delta.shape != array.shape:
            raise UserError(
                f'{self._adapter}: adds {list(delta.shape)} to {self._base.place(name)}, which '
                f'has {list(array.shape)}'
            )
        return (array.astype(np.float32) + np.float32(scale) * delta).astype(array.dtype)

    def place(self, name: str) -> str:
        """'file: name', for people."""
        return self._base.place(name)

    @property
    def paths(self) -> list[Path]:
        """The files that hold them."""
        return [*self._base.paths, self._adapter]


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (directory / CONFIG).is_file()


def base_of(directory: Path) -> Path:
    """The directory of an adapter's base. Raises UserError where it is not here."""
    name = read_config(directory).get('base_model_name_or_path') or ''
    for path in (Path(name), directory / name):
        if name and (path / 'config.json').is_file():
            return path
    raise UserError(
        f'{directory / CONFIG}: base_model_name_or_path={name!r} is no directory with a model '
        f'here: set it to where that is'
    )


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UserError where it is damaged, or asks for more than LoRA of
    linear layers.
    """
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise UserError(f'{path}: damaged ({error}): copy it again') from None
    wrong = {key: config[key] for key in sorted(config.keys() - _KNOWN) if config[key]}
    expected = {'peft_type': ('LORA',), 'bias': (None, 'none'), 'init_lora_weights': _BEGINNINGS}
    wrong |= {
        key: config.get(key) for key, values in expected.items() if config.get(key) not in values
    }
    if wrong:
        raise UserError(
            f'{path}: not supported: '
            f'{", ".join(f"{key}={value!r}" for key, value in wrong.items())}'
        )
    return config


def write_adapter(
    directory: Path,
    family: Family,
    encoder_config: EncoderConfig,
    config: Mapping[str, Any],
    weights: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    tokens: tuple[Sequence[int], np.ndarray] | None = None,
) -> None:
    """Writes an adapter into a directory.

    Args:
      encoder_config: architecture of the model.
      config: keys of adapter_config.json: base_model_name_or_path, r, lora_alpha, lora_dropout.
      weights: 'attention.query' -> for each layer A [*inputs, r] and B [r, *outputs] of the
        Encoder.
      tokens: ids, and the rows of the token table that PEFT is to have in their place.

    Raises:
      UserError: the family's files hold one of these matrices together with others.
    """
    tensors, modules = {}, []
    for tensor in family.layer(encoder_config):
        for parameter in tensor.parameters:
            if parameter in weights:
                check_apart(tensor, parameter)
                for i, (a, b) in enumerate(weights[parameter]):
                    module = tensor.name.format(i=i).removesuffix('.weight')
                    modules.append(module)
                    tensors[f'{_OUTER}{module}.lora_A.weight'] = a.reshape(-1, a.shape[-1]).T
                    tensors[f'{_OUTER}{module}.lora_B.weight'] = b.reshape(len(b), -1).T
    more: dict[str, Any] = {
        'target_modules': _targets(family, encoder_config, modules),
        'fan_in_fan_out': family.transposed,
    }
    if tokens:
        (table,) = (
            tensor.name.removesuffix('.weight')
            for tensor in family.outer(encoder_config)
            if 'token_embedding' in tensor.parameters
        )
        tensors[f'{_OUTER}{table}{_TOKENS}'] = tokens[1]
        more['trainable_token_indices'] = {table.rpartition('.')[2]: list(tokens[0])}
    fixed = {
        'peft_type': 'LORA',
        'task_type': 'FEATURE_EXTRACTION',
        'bias': 'none',
        'inference_mode': True,
        'use_rslora': False,
    }
    (directory / CONFIG).write_text(
        json.dumps(fixed | dict(config) | more, indent=2) + '\n', 'utf-8'
    )
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        directory / WEIGHTS,
        metadata={'format': 'pt'},
    )
    (directory / WEIGHTS).chmod(0o644)  # the library lets nobody else read it


def _targets(family: Family, config: EncoderConfig, modules: Sequence[str]) -> list[str]:
    """The ends of modules' names, such as self_attn.q_proj; all whole where another module has such
    an end (BERT's output.dense).
    """
    everything = {
        tensor.name.format(i=i).removesuffix('.weight')
        for tensor in family.layer(config)
        for i in range(config.layers)
    }
    ends = sorted({re.sub(r'^.*?\.\d+\.', '', module) for module in modules})
    others = everything - set(modules)
    return (
        sorted(modules)
        if any(other.endswith(f'.{end}') for other in others for end in ends)
        else ends
    )


def check_apart(tensor: Tensor, parameter: str) -> None:
    """Raises UserError for a matrix that files hold with others: PEFT has one A for all of them."""
    if len(tensor.parameters) > 1:
        name = parameter.rpartition('.')[2]
        raise UserError(
            f'lora.targets: {name} is a part of {tensor.name.format(i=0)}, for which PEFT has one '
            'adapter: export the merged model, without --adapter'
        )


def _without(family: Family, name: str) -> str:
    """A name without the prefix that files of some classes have."""
    return name.removeprefix(
        max((prefix for prefix in family.prefixes if name.startswith(prefix)), key=len)
    )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """As PEFT finds it: the first pattern that matches the end of the module's name, or what is
    said for all.
    """
    patterns = config.get('alpha_pattern') or {}
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf'(.*\.)?({key})$', module)),
        config['lora_alpha'],
    )
    return alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)


def _indices(config: Mapping[str, Any]) -> list[int]:
    given = config.get('trainable_token_indices') or []
    return next(iter(given.values())) if isinstance(given, Mapping) else given
