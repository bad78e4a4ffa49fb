"""Pairs from a prepared TensorFlow Datasets dataset, read by index from ArrayRecord or Parquet
files, without TensorFlow.

Prepare one with `tfds build --file_format=array_record`, or write it with a builder of your own.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cpt_jax.data.pairs import Pair, text_digest
from cpt_jax.data.problems import BadRow, Problems, check_text
from cpt_jax.data.split import rows_of
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import Arrays, cached, from_array, to_array

if TYPE_CHECKING:  # importing it takes a fifth of a second, which other sources need not wait for
    import tensorflow_datasets as tfds

INDEX_VERSION = 1  # raise it when the code below takes other rows of the same dataset


class TfdsSource:
    """The good rows of a dataset's split; the first use reads all of them once to find those, and
    keeps that in the cache.

    Attributes:
      split, fingerprint, documents, problems: as every source.
    """

    documents = None

    def __init__(
        self,
        name: str,
        split: str,
        x: str,
        y: str,
        negatives: str = '',
        data_dir: str | None = None,
        train_split: str = 'train',
        heldout_split: str = 'test',
        max_bad_share: float = 0.001,
        max_chars: int = 100_000,
    ):
        """Opens the dataset.

        Args:
          name: as `tfds.builder` takes it: 'name', 'name/config', 'name/config:1.0.0'.
          split: 'train', 'heldout' or 'all'.
          x, y: names of text features; 'question/text' is the feature text of the feature question.
          negatives: name of a feature that holds a sequence of texts; '' for none.
          data_dir: the folder with the prepared datasets; None is tfds's own,
            ~/tensorflow_datasets.
          train_split, heldout_split: tfds splits, such as 'train', 'validation', 'train[:95%]'; a
            heldout_split of '' holds out nothing. That they do not overlap is up to you.
          max_bad_share: share of rows that may be bad before they stop the program.
          max_chars: a longer text is a bad row.
        """
        self._x, self._y, self._negatives, self._max_chars = x, y, negatives, max_chars
        self._name, self.split = name, split
        parts = {
            'train': (train_split,),
            'heldout': (heldout_split,),
            'all': (train_split, heldout_split),
        }[split]
        self._tfds_split = '+'.join(filter(None, parts))
        self._rows = np.zeros(0, np.int64)
        self._data: Sequence[dict] = ()
        self.fingerprint = text_digest('tfds', name, split, 'nothing')
        self.problems = Problems(max_bad_share)
        if self._tfds_split:
            self._open(data_dir)

    def _open(self, data_dir: str | None) -> None:
        builder = _builder(self._name, data_dir)
        for field in filter(None, (self._x, self._y, self._negatives)):
            _check_field(builder, field)
        try:
            self._data = builder.as_data_source(self._tfds_split)
        except (ValueError, NotImplementedError, OSError) as error:
            raise UserError(
                f'split {self._tfds_split!r} of the tfds dataset {self._name!r}: '
                f'{_first_line(error)}'
            ) from None
        settings = (self._tfds_split, self._x, self._y, self._negatives, str(self._max_chars))
        key = text_digest(str(INDEX_VERSION), _state(builder), *settings)
        saved = cached(f'tfds_{key}', self._index)
        contents, problems = from_array(saved['notes'])
        self.fingerprint = text_digest('tfds', str(INDEX_VERSION), contents, self.split)
        self.problems = Problems.from_json(problems, self.problems.max_share)
        self.problems.check()
        good = saved['good']
        self._rows = good[
            rows_of('all', np.ones(len(good), bool), f'tfds {self._name} {self._tfds_split}', 0)
        ]

    def _index(self) -> Arrays:
        """good int64[n], the numbers of the good rows; notes: a digest of the pairs, and the
        problems.
        """
        problems, contents, good = Problems(), blake2b(digest_size=16), []
        for row in tqdm(
            range(len(self._data)),
            desc=f'checking {self._name} {self._tfds_split}',
            unit='row',
            disable=None,
        ):
            problems.rows += 1
            try:
                pair = self._pair(row)
            except BadRow as error:
                problems.add(error, f'{self._name} {self._tfds_split}:{row}')
            else:
                good.append(row)
                contents.update(text_digest(pair.x, pair.y, *pair.negatives).encode())
        return {
            'good': np.array(good, np.int64),
            'notes': to_array([contents.hexdigest(), problems.to_json()]),
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        return self._pair(int(self._rows[index]))

    def _pair(self, row: int) -> Pair:
        example = self._data[row]
        x, y = (
            check_text(name, _field(example, name), self._max_chars) for name in (self._x, self._y)
        )
        negatives = _field(example, self._negatives) if self._negatives else ()
        texts = tuple(
            check_text(self._negatives, negative, self._max_chars) for negative in negatives
        )
        return Pair(x, y, texts, f'{self._name} {self._tfds_split}:{row}')

    def summary(self) -> str:
        """One line: how many pairs, of how many rows, and what was wrong with the others."""
        problems = self.problems.summary() or 'all rows can be used'
        return (
            f'tfds {self._name}/{self.split}: {len(self):,} pairs of {self.problems.rows:,} rows; '
            f'{problems}'
        )


def _builder(name: str, data_dir: str | None) -> 'tfds.core.DatasetBuilder':
    import tensorflow_datasets as tfds

    where = data_dir or tfds.core.constants.DATA_DIR
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.info.splits:
            raise UserError(
                f'the tfds dataset {name!r} is not prepared in {where}: run tfds build '
                f'--file_format=array_record {name}'
            )
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f'there is no tfds dataset {name!r}, neither in data_dir ({where}) nor known to tfds'
        ) from None
    except (ValueError, ImportError, OSError, AssertionError) as error:
        raise UserError(
            f'the tfds dataset {name!r} cannot be opened in {where}: {_first_line(error)}'
        ) from None
    return builder


def _state(builder: 'tfds.core.DatasetBuilder') -> str:
    """A digest that changes when a file of the dataset does; the folder may be in a bucket."""
    stats = ((path, path.stat()) for path in sorted(builder.data_path.iterdir()))
    return text_digest(*(f'{path} {stat.length} {stat.mtime}' for path, stat in stats))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_field(builder: 'tfds.core.DatasetBuilder', name: str) -> None:
    known = list(_field_names(builder.info.features, ''))
    if name not in known:
        raise UserError(
            f'the tfds dataset {builder.info.full_name!r} has no field {name!r}; it has '
            f'{", ".join(known)}'
        )


def _field_names(features: 'tfds.features.FeatureConnector', prefix: str) -> Iterator[str]:
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        yield prefix + name
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _field_names(feature, f'{prefix}{name}/')


def _field(example: dict, name: str) -> Any:
    value: Any = example
    for part in name.split('/'):
        value = value[part]
    return value
