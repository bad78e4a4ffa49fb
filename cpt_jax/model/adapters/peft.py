"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, without the
base model.
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
from cpt_jax.model.families.family import Family, is_head_or_buffer
from cpt_jax.model.families.tensors import TensorMapping
from cpt_jax.model.formats.safetensors_files import TensorFiles, open_safetensors
from cpt_jax.model.formats.torch_files import TorchFile
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_checks import (
    FLAG,
    TEXT,
    Allowed,
    allow_integers,
    allow_list,
    allow_null,
    allow_numbers,
    allow_object,
    check_values,
)
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import fetch

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_TORCH_WEIGHTS = 'adapter_model.bin'
_WRAPPER_PREFIX = 'base_model.model.'  # PEFT's prefix for the modules of the base model
_TOKEN_DELTA_SUFFIX = '.token_adapter.trainable_tokens_delta'
# Keys of adapter_config.json that are read here, or that affect only training. Any other key must
# be empty.
_KNOWN_KEYS = {
    'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'bias', 'corda_config',
    'ensure_weight_tying', 'eva_config',
    'exclude_modules', 'fan_in_fan_out', 'inference_mode', 'init_lora_weights', 'layers_pattern',
    'layers_to_transform', 'loftq_config',
    'lora_alpha', 'lora_dropout', 'lora_ga_config', 'megatron_core', 'peft_type', 'peft_version',
    'qalora_group_size', 'r', 'rank_pattern',
    'revision', 'runtime_config', 'target_modules', 'task_type', 'trainable_token_indices',
    'use_rslora',
}  # fmt: skip
# Initializations that do not change the base. PiSSA, OLoRA, CorDA and LoftQ subtract the initial
# adapter from the base.
_KNOWN_INITS = (None, True, False, 'gaussian', 'eva', 'orthogonal')
# With larger values nothing of the base would remain in float32.
_ALPHA = allow_numbers(least=-1e6, most=1e6)
_IDS = allow_list(allow_integers(0, 10_000_000))
_TOKEN_INDICES = allow_null(
    Allowed(
        'a list of ids, or an object of such lists',
        lambda value: _IDS.accepts(value) or bool(value) and allow_object(_IDS).accepts(value),
    )
)
_VALUES = {
    'base_model_name_or_path': allow_null(TEXT),
    'r': allow_integers(1, 1_000_000),
    'lora_alpha': _ALPHA,
    'alpha_pattern': allow_null(allow_object(_ALPHA)),
    'use_rslora': allow_null(FLAG),
    'trainable_token_indices': _TOKEN_INDICES,
}


class _LinearAdapter(NamedTuple):
    """Adapter of one linear layer: scale * b @ a is added to torch's weight [out, in]."""

    a_ExI: np.ndarray
    b_OxR: np.ndarray
    scale: float


class AdaptedFiles(TensorFiles):
    """The tensors of a base with a merged adapter, each in the dtype of its file."""

    def __init__(self, base: TensorFiles, family: Family, directory: Path):
        """Reads the adapter.

        Args:
          base: tensors of the base.
          family: family of the base.
          directory: directory of the adapter.

        Raises:
          UserError: the adapter has other parts than LoRA of linear layers, or belongs to another
            base.
        """
        config = read_adapter_config(directory)
        self._base = base
        self._transposed = family.transposed
        self._adapter = find_adapter_weights(directory)
        self.names = base.names
        bare = {_strip_prefix(family, name): name for name in base.names}
        self._deltas: dict[str, _LinearAdapter] = {}
        self._rows: dict[str, tuple[list[int], np.ndarray]] = {}
        tensors = read_adapter_weights(self._adapter)
        for name in sorted(tensors):
            unwrapped = name.removeprefix(_WRAPPER_PREFIX)
            module = _strip_prefix(family, unwrapped)
            if module.endswith('.lora_A.weight'):
                module = module.removesuffix('.lora_A.weight')
                b = name.replace('.lora_A.', '.lora_B.')
                where = bare.get(f'{module}.weight')
                if where and b in tensors:
                    full_name = unwrapped.removesuffix('.lora_A.weight')
                    scale = _find_scale(config, full_name, len(tensors[name]))
                    self._deltas[where] = _LinearAdapter(tensors[name], tensors[b], scale)
                    continue
                # An adapter of the output head can be ignored, because the head is not loaded.
                can_ignore = f'{module}.weight' in family.ignored_names or is_head_or_buffer(module)
            elif module.endswith(_TOKEN_DELTA_SUFFIX):
                where = bare.get(module.removesuffix(_TOKEN_DELTA_SUFFIX) + '.weight')
                if where:
                    self._rows[where] = read_trainable_ids(config), tensors[name]
                    continue
                can_ignore = False
            else:
                # B was read together with its A.
                a = name.replace('.lora_B.', '.lora_A.')
                can_ignore = module.endswith('.lora_B.weight') and a in tensors
            if not can_ignore:
                raise UserError(
                    f'{self._adapter}: {name} is not a LoRA matrix of a linear layer of '
                    f'{base.paths[0].parent}: the adapter belongs to another base'
                )

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, with the adapter merged into it."""
        array = self._base.read(name)
        if name in self._rows:
            self._check_rows(name, list(array.shape))
            ids, rows = self._rows[name]
            # Ids beyond the base's token table are left out: the base's tokenizer does not produce
            # them.
            kept = [index for index, i in enumerate(ids) if i < len(array)]
            array = array.copy()
            array[[ids[index] for index in kept]] = rows[kept]
        if name not in self._deltas:
            return array
        self._check_shape(name, list(array.shape))
        a, b, scale = self._deltas[name]
        delta = (b @ a).T if self._transposed else b @ a
        return (array.astype(np.float32) + np.float32(scale) * delta).astype(array.dtype)

    def check_shapes(self) -> None:
        """Raises UserError if a tensor of the adapter does not have the shape for the base's."""
        for name in self._deltas:
            self._check_shape(name, self._base.read_shape(name))
        for name in self._rows:
            self._check_rows(name, self._base.read_shape(name))

    def _check_rows(self, name: str, table: list[int]) -> None:
        ids, rows = self._rows[name]
        if list(rows.shape) != [len(ids), table[-1]]:
            raise UserError(
                f'{self._adapter}: its rows for {self._base.describe_location(name)} have shape '
                f'{list(rows.shape)}, but {CONFIG} has {len(ids)} trainable_token_indices, and the '
                f'base rows of {table[-1]}'
            )

    def _check_shape(self, name: str, wanted: list[int]) -> None:
        a, b, _ = self._deltas[name]
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise UserError(
                f'{self._adapter}: its matrices for {self._base.describe_location(name)} have the '
                f'shapes {list(a.shape)} and {list(b.shape)}, which cannot be multiplied'
            )
        shape = [len(b), a.shape[1]]
        if self._transposed:
            shape.reverse()
        if shape != wanted:
            raise UserError(
                f'{self._adapter}: its matrix for {self._base.describe_location(name)} has shape '
                f'{shape}, but the base has {wanted}'
            )

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        return self._base.read_shape(name)

    def read_merged_dtype(self) -> np.dtype:
        """Returns the dtype to which merged weights are rounded: that of the base's files."""
        adapted = next(iter([*self._deltas, *self._rows]), None)
        return self._base.read(adapted).dtype if adapted else np.dtype('float32')

    def describe_location(self, name: str) -> str:
        """Returns 'file: name', for messages."""
        return self._base.describe_location(name)

    @property
    def paths(self) -> list[Path]:
        """The files that contain the tensors and the adapter."""
        return [*self._base.paths, self._adapter]


def find_adapter_weights(directory: Path) -> Path:
    """Returns the file of an adapter's weights. PEFT before version 0.7 wrote torch's format."""
    if not (directory / WEIGHTS).is_file() and (directory / _TORCH_WEIGHTS).is_file():
        return directory / _TORCH_WEIGHTS
    return directory / WEIGHTS


def read_adapter_weights(path: Path) -> dict[str, np.ndarray]:
    """Returns float32 arrays of all tensors of an adapter, by name.

    Raises:
      UserError: the file is missing or damaged.
    """
    if path.suffix == '.bin':
        torch_file = TorchFile(path)
        return {name: torch_file.read(name).astype(np.float32) for name in torch_file.tensors}
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}


def is_adapter_directory(directory: Path) -> bool:
    """Returns whether a directory contains an adapter."""
    return (directory / CONFIG).is_file()


def find_base_directory(directory: Path) -> Path:
    """Returns the directory of an adapter's base; of a copy in the cache if it is in a bucket.

    Raises:
      UserError: the base is not on this machine and not in a bucket that can be read.
    """
    name = read_adapter_config(directory).get('base_model_name_or_path') or ''
    if is_remote(name):
        return fetch(name, f'{directory / CONFIG}: base_model_name_or_path')
    for path in (Path(name), directory / name):
        if name and (path / 'config.json').is_file():
            return path
    raise UserError(
        f'{directory / CONFIG}: base_model_name_or_path={name!r} is not a directory with a model '
        f'on this machine: set it to the path of the base model'
    )


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """Reads adapter_config.json.

    Raises:
      UserError: it is damaged, or needs more than LoRA of linear layers.
    """
    path = directory / CONFIG
    config = read_json_file(path)
    check_values(path, config, _VALUES)
    if 'lora_alpha' not in config:
        raise UserError(f"{path}: has no 'lora_alpha'")
    unsupported = {key: config[key] for key in sorted(config.keys() - _KNOWN_KEYS) if config[key]}
    expected = {'peft_type': ('LORA',), 'bias': (None, 'none'), 'init_lora_weights': _KNOWN_INITS}
    unsupported |= {
        key: config.get(key)
        for key, values in expected.items()
        if config.get(key) not in list(values)
    }
    if unsupported:
        raise UserError(
            f'{path}: not supported: '
            f'{", ".join(f"{key}={value!r}" for key, value in unsupported.items())}'
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
      directory: directory to write into.
      family: family of the base.
      encoder_config: architecture of the model.
      config: keys of adapter_config.json: base_model_name_or_path, r, lora_alpha, lora_dropout.
      weights: name of a matrix, such as 'attention.query' -> for each layer, the Encoder's
        A [*inputs, r] and B [r, *outputs].
      tokens: ids, and the rows that replace theirs in the base's token table; optional.

    Raises:
      UserError: the family's files store one of these matrices together with others.
    """
    tensors = {}
    modules = []
    for tensor in family.layer(encoder_config):
        for parameter in tensor.parameters:
            if parameter in weights:
                check_is_separate(tensor, parameter)
                for i, (a, b) in enumerate(weights[parameter]):
                    module = tensor.name.format(i=i).removesuffix('.weight')
                    modules.append(module)
                    prefix = f'{_WRAPPER_PREFIX}{module}'
                    tensors[f'{prefix}.lora_A.weight'] = a.reshape(-1, a.shape[-1]).T
                    tensors[f'{prefix}.lora_B.weight'] = b.reshape(len(b), -1).T
    more: dict[str, Any] = {
        'target_modules': _choose_target_modules(family, encoder_config, modules),
        'fan_in_fan_out': family.transposed,
    }
    if tokens:
        (table,) = (
            tensor.name.removesuffix('.weight')
            for tensor in family.outer(encoder_config)
            if 'token_embedding' in tensor.parameters
        )
        tensors[f'{_WRAPPER_PREFIX}{table}{_TOKEN_DELTA_SUFFIX}'] = tokens[1]
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
    (directory / WEIGHTS).chmod(0o644)  # safetensors makes it readable by its owner only


def _choose_target_modules(
    family: Family, config: EncoderConfig, modules: Sequence[str]
) -> list[str]:
    """Returns PEFT's target_modules: suffixes of module names, such as self_attn.q_proj.

    If a suffix also matches a module without an adapter (BERT's output.dense), returns the full
    names instead.
    """
    all_modules = {
        tensor.name.format(i=i).removesuffix('.weight')
        for tensor in family.layer(config)
        for i in range(config.layers)
    }
    suffixes = sorted({re.sub(r'^.*?\.\d+\.', '', module) for module in modules})
    others = all_modules - set(modules)
    is_ambiguous = any(other.endswith(f'.{suffix}') for other in others for suffix in suffixes)
    return sorted(modules) if is_ambiguous else suffixes


def check_is_separate(tensor: TensorMapping, parameter: str) -> None:
    """Raises UserError if files store a matrix together with others.

    PEFT has a single A for all of them.
    """
    if len(tensor.parameters) > 1:
        name = parameter.rpartition('.')[2]
        raise UserError(
            f'lora.targets: {name} is a part of {tensor.name.format(i=0)}, for which PEFT has a '
            'single adapter: export the merged model, without --adapter'
        )


def _strip_prefix(family: Family, name: str) -> str:
    """Removes the longest known prefix that a tensor name begins with."""
    return name.removeprefix(
        max((prefix for prefix in family.prefixes if name.startswith(prefix)), key=len)
    )


def _find_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns the scale of a module's adapter.

    As in PEFT, alpha is that of the first `alpha_pattern` that matches the module's whole name in
    the model or the end of it, or `lora_alpha` if none does.
    """
    patterns = config.get('alpha_pattern') or {}
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf'(.*\.)?({key})$', module)),
        config['lora_alpha'],
    )
    return alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)


def read_trainable_ids(config: Mapping[str, Any]) -> list[int]:
    """Returns the ids whose rows of the token table an adapter replaces."""
    given = config.get('trainable_token_indices') or []
    return next(iter(given.values())) if isinstance(given, Mapping) else given
