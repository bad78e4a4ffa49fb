"""Outputs in buckets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cpt_jax.storage.remote import open_filesystem
from cpt_jax.storage.store_errors import explain_errors

_PARALLEL_WRITES = 8
_LAST = ('config.json', 'adapter_config.json')


def upload_folder(folder: Path, url: str, name: str) -> None:
    """Copies the files of a local folder into a bucket.

    The files without which nothing loads the folder are written when all others are.

    Args:
      folder: the local folder.
      url: URL of the folder to write.
      name: flag or argument that the URL comes from, for messages.

    Raises:
      UserError: the bucket cannot be written.
    """
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
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

        list(threads.map(upload, (path for path in paths if path.name not in _LAST)))
        list(threads.map(upload, (path for path in paths if path.name in _LAST)))
