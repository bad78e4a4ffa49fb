"""Fingerprint of the weights of a pretrained model."""

from pathlib import Path

from etils import epath

from cpt_jax.storage.text_lines import compute_file_fingerprint


def fingerprint_weights(*directories: Path) -> str:
    """Returns 32 hex digits for the weights and settings in the directories of a pretrained model,
    or in its GGUF file.

    The path is not enough: another model may be saved to the same directory later.
    """
    suffixes = ('.safetensors', '.bin', '.json', '.gguf')
    paths = [path for folder in directories for path in (folder, *sorted(folder.rglob('*')))]
    return compute_file_fingerprint(
        *(epath.Path(path) for path in paths if path.suffix in suffixes and path.is_file())
    )
