"""The weights of a directory, in the format that transformers would load."""

from pathlib import Path

from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.torch_files import TorchFiles
from cpt_jax.runtime.errors import UserError

# transformers takes the first format that exists (`_get_resolved_checkpoint_files`, 5.23).
_FORMATS = (TensorFiles, TorchFiles)


def has_weight_files(directory: Path) -> bool:
    """Whether a directory contains weights in a format that can be read."""
    return any(_has_format(directory, files) for files in _FORMATS)


def _has_format(directory: Path, files: type[TensorFiles]) -> bool:
    return any((directory / name).is_file() for name in (files.SINGLE, files.INDEX))


def open_weight_files(directory: Path) -> TensorFiles:
    """Opens the files of a model's weights, without reading a tensor.

    Raises:
      UserError: there are none, a shard is missing, or a file is damaged.
    """
    for files in _FORMATS:
        if _has_format(directory, files):
            return files(directory)
    other = sorted(
        path.name
        for path in directory.glob('*')
        if path.suffix in ('.safetensors', '.bin', '.pt', '.pth', '.h5', '.msgpack')
    )
    hint = ''
    if other:
        hint = f'; {", ".join(other[:3])} cannot be read: save the model with `save_pretrained`'
    raise UserError(
        f'{directory}: has neither {" nor ".join(files.SINGLE for files in _FORMATS)}, nor an '
        f'index of their shards{hint}'
    )
