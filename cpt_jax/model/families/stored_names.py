"""Tensors that files store by other names than their family, or several as one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.family import Family
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.runtime.errors import UserError

# Suffixes in checkpoints of BERT that were converted from TensorFlow, such as bert-base-uncased.
# transformers renames them too (`_get_key_renaming_mapping`).
_OLD_SUFFIXES = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}


class RenamedFiles(TensorFiles):
    """The tensors of other files, some of them by other names."""

    def __init__(self, files: TensorFiles, name_by_stored: Mapping[str, str]):
        """Wraps files.

        Args:
          files: the files.
          name_by_stored: new name of each tensor that is renamed, by its name in the files.
        """
        self._files = files
        self._stored_by_name = {name_by_stored.get(name, name): name for name in files.names}
        self.names = self._stored_by_name.keys()

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, in the dtype of the file."""
        return self._files.read(self._stored_by_name[name])

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        return self._files.read_shape(self._stored_by_name[name])

    @property
    def paths(self) -> list[Path]:
        """The files that contain the tensors."""
        return self._files.paths

    def describe_location(self, name: str) -> str:
        """Returns 'file: name', for messages."""
        return self._files.describe_location(self._stored_by_name[name])


class SplitFiles(TensorFiles):
    """The tensors of other files, of which some are the concatenation of several."""

    def __init__(self, files: TensorFiles, family: Family, config: EncoderConfig):
        """Wraps files.

        Args:
          files: files of a pretrained model.
          family: family of the model.
          config: architecture of the model.

        Raises:
          UserError: a tensor is stored in both forms.
        """
        self._files = files
        # (name in the files, index of the part, number of parts) by the name of each part.
        self._parts: dict[str, tuple[str, int, int]] = {}
        for pattern, part_patterns in family.stored:
            for layer in range(config.layers if '{i}' in pattern else 1):
                parts = [part.format(i=layer) for part in part_patterns]
                for prefix in family.prefixes:
                    stored = prefix + pattern.format(i=layer)
                    if stored in files.names:
                        for index, part in enumerate(parts):
                            self._parts[prefix + part] = stored, index, len(parts)
        stored_names = {stored for stored, _, _ in self._parts.values()}
        whole = files.names - stored_names
        if twice := sorted(whole & self._parts.keys()):
            raise UserError(
                f'{files.describe_location(twice[0])} is also in {self._parts[twice[0]][0]}: '
                f'save the model again'
            )
        self.names = whole | self._parts.keys()

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, in the dtype of the file."""
        if name not in self._parts:
            return self._files.read(name)
        stored, index, count = self._parts[name]
        rows = self.read_shape(name)[0]
        # A copy, so that the other parts do not stay in memory.
        return self._files.read(stored)[index * rows : (index + 1) * rows].copy()

    def read_shape(self, name: str) -> list[int]:
        """Returns the shape of a tensor, without reading it."""
        if name not in self._parts:
            return self._files.read_shape(name)
        stored, _, count = self._parts[name]
        shape = self._files.read_shape(stored)
        if not shape or shape[0] % count:
            raise UserError(
                f'{self.describe_location(name)} has shape {shape}, which is not {count} tensors '
                f'of equal size'
            )
        return [shape[0] // count, *shape[1:]]

    @property
    def paths(self) -> list[Path]:
        """The files that contain the tensors."""
        return self._files.paths

    def describe_location(self, name: str) -> str:
        """Returns 'file: name', for messages."""
        return self._files.describe_location(self._parts.get(name, (name,))[0])


def rename_tensors(
    files: TensorFiles, family: Family, config: EncoderConfig, is_tied: bool
) -> TensorFiles:
    """Returns the files with the family's names.

    Args:
      files: files of a pretrained model.
      family: family of the model.
      config: architecture of the model.
      is_tied: whether the output head is the token table. A file may then have the table by the
        name of the head only: `safetensors.torch.save_model` keeps the first name in the alphabet.
    """
    if family.stored:
        files = SplitFiles(files, family, config)
    renamed = {}
    for name in files.names:
        for old, new in _OLD_SUFFIXES.items():
            if name.endswith(old):
                renamed[name] = name.removesuffix(old) + new
    table = find_table_name(family, config)
    if is_tied and not any(prefix + table in files.names for prefix in family.prefixes):
        needed = [tensor.name.format(i=0) for tensor in family.layer(config)]
        prefix = choose_prefix(family, {*files.names, *renamed.values()}, needed)
        heads = [prefix + family.head, family.head]
        renamed |= {head: prefix + table for head in heads if head in files.names}
    return RenamedFiles(files, renamed) if renamed else files


def find_table_name(family: Family, config: EncoderConfig) -> str:
    """Returns the name of the token table in the family's files, without a prefix."""
    (name,) = (
        tensor.name for tensor in family.outer(config) if 'token_embedding' in tensor.parameters
    )
    return name


def choose_prefix(family: Family, names: Iterable[str], needed: Iterable[str]) -> str:
    """Returns the prefix with which most of the needed names are in `names`."""
    known = set(names)
    wanted = list(needed)
    return max(family.prefixes, key=lambda prefix: sum(prefix + name in known for name in wanted))
