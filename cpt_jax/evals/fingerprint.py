"""Fingerprints: what a task's scores depend on besides the model, and which weights a pretrained
model has.
"""

from collections.abc import Iterable
from pathlib import Path

from etils import epath

from cpt_jax.evals.options import Options
from cpt_jax.evals.store.embedding_cache import digest_json
from cpt_jax.storage.text_lines import file_fingerprint


def fingerprint_task(name: str, options: Options, data: str) -> str:
    """Returns 32 hex digits for a task's name, its options and its data.

    Args:
      name: name of the task.
      options: options of its kind; those that change no score are left out.
      data: fingerprint of all that the task reads, such as `fingerprint_files` returns.
    """
    return digest_json([name, options.scored(), data])


def fingerprint_files(paths: Iterable[epath.Path]) -> str:
    """Returns 32 hex digits for the content of the files among `paths`. Takes seconds a gigabyte.

    A missing file is not an error here: it is reported when the task runs.
    """
    return file_fingerprint(*sorted(path for path in paths if path.is_file()))


def fingerprint_glob(folder: epath.Path, pattern: str) -> str:
    """Returns 32 hex digits for the content of the files below `folder` that match `pattern`."""
    return fingerprint_files(folder.glob(pattern))


def fingerprint_weights(*directories: Path) -> str:
    """Returns 32 hex digits for the weights and settings in the directories of a pretrained model:
    another model may take its place under the same name.
    """
    suffixes = ('.safetensors', '.bin', '.json')
    paths = [path for folder in directories for path in sorted(folder.rglob('*'))]
    return file_fingerprint(
        *(epath.Path(path) for path in paths if path.suffix in suffixes and path.is_file())
    )
