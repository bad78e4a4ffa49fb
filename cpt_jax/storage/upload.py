"""Outputs in buckets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from etils import epath
from tqdm import tqdm

from cpt_jax.storage.local_path import local_path
from cpt_jax.storage.remote import explain_errors, open_filesystem

_PARALLEL_WRITES = 8
_LAST = ('config.json', 'adapter_config.json')


def make_output_path(path: str | Path, name: str) -> Path:
    """Returns the path of an output; one of a bucket (gs://...) is an epath.Path.

    Args:
      path: the path, as the user gave it.
      name: flag or argument that the path comes from, for messages.

    Raises:
      UserError: the path is a URL of another kind, or the bucket cannot be opened.
    """
    if not str(path).startswith('gs://'):
        return local_path(path, name)
    with explain_errors(name, str(path), 'written'):
        open_filesystem(str(path))
        return cast(Path, epath.Path(path))


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
