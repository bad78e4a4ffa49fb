"""Outputs in buckets."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cpt_jax.storage.remote import open_filesystem
from cpt_jax.storage.store_errors import explain_errors

_PARALLEL_WRITES = 8
_WEIGHTS = '.safetensors'
_LAST = ('config.json', 'adapter_config.json')


def upload_folder(folder: Path, url: str, name: str, without: Collection[Path] = ()) -> None:
    """Copies the files of a local folder into a bucket.

    Args:
      folder: the local folder.
      url: URL of the folder to write.
      name: flag or argument that the URL comes from, for messages.
      without: paths of files that are not copied.

    Raises:
      UserError: the bucket cannot be written.
    """
    files = {path for path in folder.rglob('*') if path.is_file()}
    upload_files(sorted(files.difference(without)), folder, url, name)


def upload_files(paths: Sequence[Path], folder: Path, url: str, name: str) -> None:
    """Copies some files of a local folder into a bucket.

    Weights are written first, and the files without which nothing loads the folder last.

    Args:
      paths: the files.
      folder, url, name: see `upload_folder`.

    Raises:
      UserError: the bucket cannot be written.
    """
    total = sum(path.stat().st_size for path in paths)
    with (
        explain_errors(name, url, 'written'),
        tqdm(total=total, desc=f'copying to {url}', unit='B', unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(_PARALLEL_WRITES) as threads,
    ):
        filesystem, root = open_filesystem(url)

        def upload(path: Path) -> None:
            filesystem.put_file(str(path), f'{root}/{path.relative_to(folder).as_posix()}')
            bar.update(path.stat().st_size)

        for phase in range(3):
            list(threads.map(upload, [path for path in paths if _get_phase(path) == phase]))


def _get_phase(path: Path) -> int:
    """Returns when a file is written: with the files of phase 0, 1 or 2."""
    if path.name in _LAST:
        return 2
    return 0 if path.suffix == _WEIGHTS else 1


def download_files(paths: Sequence[Path], folder: Path, url: str, name: str) -> None:
    """Copies files of a bucket into a local folder, under the names that `upload_files` gave them.

    Raises:
      UserError: the bucket cannot be read.
    """
    with explain_errors(name, url), ThreadPoolExecutor(_PARALLEL_WRITES) as threads:
        filesystem, root = open_filesystem(url)

        def download(path: Path) -> None:
            filesystem.get_file(f'{root}/{path.relative_to(folder).as_posix()}', str(path))

        list(threads.map(download, paths))


def remove_folder(url: str) -> None:
    """Removes the files of a folder of a bucket, if it exists.

    They are listed twice, because another thread may end an upload in the meantime.
    """
    filesystem, root = open_filesystem(url)
    for _ in range(2):
        for path in filesystem.find(root):
            filesystem.rm_file(path)  # `rm` would take a path with brackets for a pattern
