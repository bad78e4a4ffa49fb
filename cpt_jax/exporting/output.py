"""The directory of an export, which becomes visible when it is complete."""

import dataclasses
import functools
import logging
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpt_jax.exporting.weight_shards import take_own_shards
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.multihost import clean_up_on_failure
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.paths import is_on_bucket
from cpt_jax.storage.remote import RemoteFiles
from cpt_jax.storage.store_errors import explain_errors
from cpt_jax.storage.upload import download_files, remove_folder, upload_files, upload_folder
from cpt_jax.storage.writable import check_writable

_PART = r'((query|document)/)?'
_WEIGHTS = re.compile(rf'{_PART}(\d_\w+/)?model(-\d+-of-\d+)?\.safetensors')
# The files of an export that are in a bucket before the first config.json.
_BEFORE_CONFIG = re.compile(
    rf'{_WEIGHTS.pattern}|{_PART}('
    r'(config_sentence_transformers|golden|model\.safetensors\.index|modules|parity'
    r'|sentence_bert_config|special_tokens_map|tokenizer|tokenizer_config)\.json'
    r'|\d_\w+/\.gitkeep|README\.md|training\.png)'
)


def check_is_single_process(what: str) -> None:
    """Raises UserError if there are several processes.

    Without `join_processes`, JAX counts the hosts of a TPU pod, but not the processes that another
    launcher starts.

    Args:
      what: what one process writes, for the message.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'{what} is written by a single process: run it on one host, with JAX_PLATFORMS=cpu if '
            f'one host cannot use its chips without the others'
        )


def remove_unfinished_export(output: Path) -> None:
    """Removes what a killed export left in a bucket, with a warning.

    It has weights and no config.json, and no file that an export does not write, so that nobody's
    own folder is removed. Process 0 removes it.

    Raises:
      UserError: the bucket cannot be read or written.
    """
    if not is_on_bucket(output) or jax.process_index() != 0:
        return
    url = str(output)
    found = RemoteFiles.find(url, '--output', must_exist=False)
    if found.kind == 'folder' and is_unfinished(found.files):
        logging.warning(
            '--output %s: removing the %d files of an export that was killed', url, len(found.files)
        )
        with explain_errors('--output', url, 'written'):
            remove_folder(url)


def is_unfinished(names: Collection[str]) -> bool:
    """Returns whether a folder is that of an export without a config.json.

    Args:
      names: paths of all its files, relative to it.
    """
    return any(map(_WEIGHTS.fullmatch, names)) and all(map(_BEFORE_CONFIG.fullmatch, names))


def check_can_export(output: Path) -> None:
    """Raises UserError if `output` already exists, or if its folder cannot be written.

    Of a folder in a bucket, process 0 decides, which alone may have removed it just now.
    """
    if is_on_bucket(output):
        check_writable(get_cache_folder(), '--output')
        if jax.process_index() != 0:
            return
    elif jax.process_index() == 0:  # it makes the folder
        check_writable(output.absolute().parent, '--output')
    with explain_errors('--output', str(output)):
        exists = output.exists()
    if exists:
        raise UserError(f'--output {output}: already exists: remove it, or give another')


@dataclasses.dataclass(frozen=True)
class ExportFolder:
    """A temporary directory that the processes fill together.

    Each process writes some of the weights. On a bucket, the processes have a folder each, and
    exchange the weights over the bucket; otherwise they have one folder on a shared disk.

    Attributes:
      path: the folder of this process.
      writes_files: whether this process writes the files other than weights into the folder.
      bucket: URL of the output, if it is in a bucket and there are several processes; or ''.
      shared: weights that are in all folders, and in the bucket.
    """

    path: Path
    writes_files: bool = True
    bucket: str = ''
    shared: list[Path] = dataclasses.field(default_factory=list)

    def share_weights(self, weights: Sequence[Path]) -> None:
        """Waits until all weights are complete, and makes them readable in all folders.

        Args:
          weights: the files that all processes have written together.
        """
        own = take_own_shards(weights)
        if self.bucket:
            upload_files(own, self.path, self.bucket, '--output')
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f'written {weights[0].relative_to(self.path)}')
        if self.bucket:
            # Weights of another directory have been linked.
            others = [path for path in weights if path not in own and not path.exists()]
            download_files(others, self.path, self.bucket, '--output')
        self.shared.extend(weights)


@contextmanager
def open_export_folder(output: Path) -> Iterator[ExportFolder]:
    """Yields an empty folder; its files are in `output` after the block, and nothing is if the
    block fails on any process.

    All processes must call it.

    Raises:
      UserError: another process does not see the folder that the first one makes.
    """
    if jax.process_count() == 1:
        with atomic_directory(output) as path:
            yield ExportFolder(path)
    else:
        is_shared = not is_on_bucket(output)
        with (_open_shared_folder if is_shared else _open_own_folder)(output) as folder:
            yield folder


@contextmanager
def _open_own_folder(output: Path) -> Iterator[ExportFolder]:
    url = str(output)
    cache = get_cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix='export-', dir=cache))

    def clean_up() -> None:
        _remove(path)
        if jax.process_index() == 0:
            remove_folder(url)

    with clean_up_on_failure(clean_up):
        folder = ExportFolder(path, bucket=url)
        yield folder
        if jax.process_index() == 0:
            upload_folder(path, url, '--output', without=folder.shared)
        _remove(path)
        multihost_utils.sync_global_devices(f'uploaded {output}')


@contextmanager
def _open_shared_folder(output: Path) -> Iterator[ExportFolder]:
    parent, prefix = output.absolute().parent, f'.{output.name}.'
    suffix = '-' * 8  # as long as that of mkdtemp
    if jax.process_index() == 0:
        parent.mkdir(parents=True, exist_ok=True)
        suffix = tempfile.mkdtemp(prefix=prefix, dir=parent).rpartition('.')[2]
    codes = multihost_utils.broadcast_one_to_all(np.frombuffer(suffix.encode(), np.uint8))
    path = parent / f'{prefix}{np.asarray(codes, np.uint8).tobytes().decode()}'
    clean_up = functools.partial(_remove, path)
    with clean_up_on_failure(clean_up if jax.process_index() == 0 else None):
        _check_all_see(path, output)
        yield ExportFolder(path, writes_files=jax.process_index() == 0)
        if jax.process_index() == 0:
            _publish(path, output)
        multihost_utils.sync_global_devices(f'renamed {output}')


def _check_all_see(folder: Path, output: Path) -> None:
    """Raises UserError on all processes if one of them does not see a folder of the first."""
    is_seen = multihost_utils.process_allgather(np.asarray(folder.is_dir())).reshape(-1)
    if not is_seen.all():
        blind = ', '.join(map(str, np.flatnonzero(~is_seen).tolist()))
        raise UserError(
            f'--output {output}: process {blind} does not see the folder that process 0 makes '
            f'there: give a directory on a disk that all processes share, or one in a bucket '
            f'(gs://...)'
        )


@contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """Yields a temporary directory; renames it to `output` on success and removes it on failure.

    If `output` is in a bucket, the directory is in the cache and is uploaded on success.
    """
    if is_on_bucket(output):
        cache = get_cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='export-', dir=cache) as folder:
            yield Path(folder)
            upload_folder(Path(folder), str(output), '--output')
        return
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{output.name}.', dir=output.absolute().parent))
    try:
        yield temporary
        _publish(temporary, output)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _publish(temporary: Path, output: Path) -> None:
    temporary.chmod(0o755)  # mkdtemp makes it readable by its owner only
    try:
        temporary.rename(output.absolute())
    except OSError:
        if not output.exists():
            raise
        raise UserError(
            f'--output {output}: another process has written it: remove it, or give another'
        ) from None


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
