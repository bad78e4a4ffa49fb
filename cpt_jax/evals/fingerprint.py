"""Fingerprints of everything that a task's scores depend on besides the model."""

from collections.abc import Iterable

from etils import epath

from cpt_jax.evals.options import Options
from cpt_jax.evals.store.embedding_cache import digest_json
from cpt_jax.storage.text_lines import compute_file_fingerprint, find_paths


def fingerprint_task(name: str, options: Options, data: str) -> str:
    """Returns 32 hex digits for a task's name, its options and its data.

    Args:
      name: task name.
      options: options of the task's kind. Options that change no score are not hashed.
      data: fingerprint of all data that the task reads, such as `fingerprint_files` returns.
    """
    return digest_json([name, options.get_fingerprinted(), data])


def fingerprint_files(paths: Iterable[epath.Path]) -> str:
    """Returns 32 hex digits for the content of `paths`. Takes seconds per gigabyte.

    Directories and missing files are skipped: the task reports a missing file when it runs.
    """
    return compute_file_fingerprint(*sorted(path for path in paths if path.is_file()))


def fingerprint_glob(folder: epath.Path, pattern: str) -> str:
    """Returns 32 hex digits for the content of the files below `folder` that match `pattern`."""
    return fingerprint_files(find_paths(folder, pattern))
