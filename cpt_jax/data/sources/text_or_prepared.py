"""The source `text`: files of text, or the data set that launch/prepare.py has made of them."""

import functools
from pathlib import Path
from typing import Any

from cpt_jax.data.pairs import Source
from cpt_jax.data.prepared import INFO_FILE, SUMMARY_FILE, PreparedDirectory, is_prepared
from cpt_jax.data.sources.text import TextSource
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import RemoteFiles, expand_home, fetch

_TEST_SPLIT = 'test'


@functools.wraps(TextSource, updated=())  # a config may set the arguments of TextSource
def open_text(path: str, split: str, verify: bool = False, **arguments: Any) -> Source:
    """Returns the pairs of a folder of text, or of a directory of launch/prepare.py.

    A prepared directory was cut, and its documents were held out, when it was prepared: the
    arguments that say how have no effect, except that a directory without held-out documents is an
    error if `holdout` is above 0.
    """
    if not _names_prepared_directory(path):
        return TextSource(path=path, split=split, verify=verify, **arguments)
    directory = PreparedDirectory(Path(fetch(path, 'path')))
    holdout = arguments.get('holdout', 0.0)
    if holdout and _TEST_SPLIT not in directory.splits:
        raise UserError(
            f'holdout={holdout:g}: {path} was prepared without held-out documents: prepare it with '
            f'--config.output.holdout={holdout:g}, or set holdout to 0'
        )
    return TfdsSource(path=path, split=split, verify=verify)


def _names_prepared_directory(path: str) -> bool:
    if is_remote(path):
        found = RemoteFiles.find(path, 'path', must_exist=False)
        return found.kind == 'folder' and {SUMMARY_FILE, INFO_FILE} <= found.files.keys()
    return is_prepared(expand_home(path, 'path'))
