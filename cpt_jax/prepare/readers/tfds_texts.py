"""Documents of prepared tfds data sets in ArrayRecord files, read without TensorFlow."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpt_jax.prepare.document import Document, Unreadable
from cpt_jax.prepare.records import BadRecord, make_document

FEATURES_FILE = 'features.json'
_RECORDS_AT_ONCE = 1024


def read_tfds_shard(
    path: Path, name: str, text: str | Sequence[str] = 'text', id: str = 'id', split: str = 'train'
) -> Iterator[Document | Unreadable]:
    """Yields a document for each example of a shard.

    Args:
      path: a file NAME-SPLIT.array_record-00000-of-00001, with features.json in its folder.
      name: its name in the source.
      text: feature with the text, or several that are joined by a blank line. 'a/b' is feature `b`
        of feature `a`.
      id: feature with a name for the document, which is optional.
      split: split whose shards are read.
    """
    del split  # `is_shard` has selected the files
    from array_record.python.array_record_module import ArrayRecordReader

    names = (text,) if isinstance(text, str) else tuple(text)
    try:
        features = _load_features(path.parent)
        reader = ArrayRecordReader(str(path), 'readahead_buffer_size:0')
        total = reader.num_records()
        for start in range(0, total, _RECORDS_AT_ONCE):
            end = min(start + _RECORDS_AT_ONCE, total)
            for offset, record in enumerate(reader.read(start, end)):
                where = f'{name}:{start + offset}'
                try:
                    yield make_document(_to_plain(features, record), names, id, where)
                except BadRecord as error:
                    yield Unreadable(where, error.kind, error.detail)
        reader.close()
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        detail = ' '.join(str(error).split())
        yield Unreadable(name, 'broken ArrayRecord file', detail, ends_file=True)


def is_shard(name: str, split: str = 'train', **others: object) -> bool:
    """Returns whether a file is a shard of a split."""
    del others
    return f'-{split}.array_record-' in Path(name).name


@functools.cache
def _load_features(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeatureConnector.from_config(folder)


def _to_plain(features: Any, record: bytes) -> dict[str, Any]:
    return {name: _decode(value) for name, value in features.deserialize_example_np(record).items()}


def _decode(value: Any) -> Any:
    """Returns a value of an example with texts in place of bytes."""
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    if isinstance(value, dict):
        return {name: _decode(part) for name, part in value.items()}
    if hasattr(value, 'tolist'):
        return _decode(value.tolist())
    return [_decode(part) for part in value] if isinstance(value, list) else value
