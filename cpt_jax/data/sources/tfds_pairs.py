"""Pairs from a prepared TensorFlow Datasets dataset, read by index from ArrayRecord or Parquet
files, without TensorFlow.

Prepare a dataset with `tfds build --file_format=array_record`, write it with your own builder, or
with launch/prepare.py, whose directory is named by `path` alone.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cpt_jax.data.files import InputFile, digest_file_states
from cpt_jax.data.pairs import Pair, digest_texts
from cpt_jax.data.positives import NO_OTHER_POSITIVES, compute_word_id, find_other_positives
from cpt_jax.data.prepared import PreparedDirectory, is_prepared
from cpt_jax.data.problems import BadRow, Problems, decode_text_field
from cpt_jax.data.rows import split_field_names, to_field_names
from cpt_jax.data.scores import check_score_fields, parse_number, parse_scores
from cpt_jax.data.split import select_rows
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.open_files import allow_open_files
from cpt_jax.storage.cache import (
    Arrays,
    array_to_json,
    fits_into_cache,
    is_slower_than_cache,
    json_to_array,
    load_or_build,
)
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import RemoteFiles, fetch

if TYPE_CHECKING:  # the import takes 0.2 s, so it is delayed until a source of this kind is used
    import tensorflow_datasets as tfds

# Increment when a change to the code below changes the rows that are selected from the same
# dataset.
INDEX_VERSION = 1
_INDEX_ARRAYS = ('good', 'x_id', 'y_id', 'notes')


class TfdsSource:
    """The valid rows of a dataset's split. The first use checks all rows and caches the result.

    The rows of launch/prepare.py were checked when they were written and are not checked again, so
    that any number of them opens at once.

    Attributes:
      split, fingerprint: see Source.
      documents: see Source; None unless launch/prepare.py wrote the dataset.
      problems: counts of bad rows.
      most_positives: see RowSource. A run whose texts have one id does not compare positives, and
        neither do the rows of launch/prepare.py.
      is_prepared: whether launch/prepare.py wrote the dataset.
      rules: pair rule and number of pairs of each source of launch/prepare.py, in the order of the
        pairs; [] if they are unknown.
      searched_sets: see PreparedDirectory; None if launch/prepare.py is not the writer.
    """

    def __init__(
        self,
        name: str = '',
        split: str = 'train',
        x: str = 'x',
        y: str = 'y',
        negatives: str = '',
        data_dir: str | None = None,
        train_split: str = 'train',
        heldout_split: str = 'test',
        max_bad_share: float = 0.001,
        max_chars: int = 100_000,
        path: str = '',
        scores: str = '',
        score: str = '',
        verify: bool = False,
    ):
        """Opens the dataset.

        Args:
          name: name of the dataset for `tfds.builder`: 'name', 'name/config' or
            'name/config:1.0.0'; '' if `path` is given.
          split: 'train', 'heldout' or 'all'.
          x, y: names of text features; 'question/text' is feature `text` of feature `question`.
          negatives: name of a feature with a sequence of hard negatives; '' for none.
          data_dir: folder with the prepared datasets; None: tfds's default, ~/tensorflow_datasets.
            From a bucket (gs://...), the dataset is copied into the cache.
          train_split, heldout_split: tfds splits, such as 'train', 'validation' or 'train[:95%]'.
            They must not overlap, which is not checked. A heldout_split of '' holds out no pairs.
          max_bad_share: maximum fraction of bad rows, in [0, 1]; more of them are an error.
          max_chars: maximum number of characters of a text; a row with a longer text is bad.
          path: directory of a dataset (with dataset_info.json), local or in a bucket, instead of
            `name` and `data_dir`. If launch/prepare.py wrote it, its splits, documents and hard
            negatives are read without further arguments.
          scores: name of a feature with a teacher's scores: a sequence of that of y and of each of
            the negatives, in their order. With several names, separated by commas, their values
            follow each other. A row with another number of them is bad.
          score: name of a feature with the grade of a pair, a number that is higher the more alike
            x and y are, for the term 'cosent'.
          verify: whether to read the files in full to find out whether they changed.

        Raises:
          UserError: the dataset, split or a field does not exist, or too many rows are bad.
        """
        if bool(name) == bool(path):
            raise UserError('give name, for a dataset of tfds, or path, for its directory')
        directory = Path(fetch(path, 'path')) if path else None
        prepared = PreparedDirectory(directory) if directory and is_prepared(directory) else None
        if prepared:
            negatives = negatives or 'negatives'
            if heldout_split == 'test' and 'test' not in prepared.splits:
                heldout_split = ''  # the default, and no document was held out
            _check_whole_splits(path, prepared.splits, train_split, heldout_split)
            _check_no_numbers(path, scores, score)
        name = name or path
        self.is_prepared = prepared is not None
        self.searched_sets = prepared.searched_sets if prepared else None
        self._removed_pairs = prepared.removed_pairs if prepared else 0
        self.rules: list[tuple[str, int]] = []
        self.documents: np.ndarray | None = None
        self._x = x
        self._y = y
        self._negatives = negatives
        self._scores = split_field_names(scores)
        self._score = score
        check_score_fields(self._scores, score)
        self._max_chars = max_chars
        self._verify = verify
        self._name = name
        self.split = split
        tfds_splits = {
            'train': (train_split,),
            'heldout': (heldout_split,),
            'all': (train_split, heldout_split),
        }
        self._tfds_split = '+'.join(filter(None, tfds_splits[split]))
        self._rows: np.ndarray | range = range(0)
        self._data: Sequence[dict] = ()
        self._other_positives = NO_OTHER_POSITIVES
        self.fingerprint = digest_texts('tfds', name, split, 'nothing')
        self.problems = Problems(max_bad_share)
        if self._tfds_split:
            self._open(data_dir, directory, prepared)
        self.most_positives = self._other_positives.most

    def _open(
        self, data_dir: str | None, directory: Path | None, prepared: PreparedDirectory | None
    ) -> None:
        if directory:
            builder = _open_directory(directory)
        else:
            builder = _open_builder(self._name, _fetch_data_set(self._name, data_dir, self._verify))
        scores = self._scores or to_field_names(self._score)
        for field in filter(None, (self._x, self._y, self._negatives, *scores)):
            _check_field(builder, field)
        shards = sum(split.num_shards for split in builder.info.splits.values())
        allow_open_files(shards, f'the tfds dataset {self._name!r}')
        try:
            self._data = builder.as_data_source(self._tfds_split)
        except (ValueError, NotImplementedError, OSError) as error:
            raise UserError(
                f'split {self._tfds_split!r} of the tfds dataset {self._name!r}: '
                f'{_get_first_line(error)}'
            ) from None
        if prepared:
            self._use_prepared(prepared)
            return
        kind = 'score' if self._score else 'scores'
        settings = (
            self._tfds_split,
            self._x,
            self._y,
            self._negatives,
            str(self._max_chars),
            *(f'{kind} {name}' for name in scores),
        )
        states = _digest_file_states(builder, self._verify)
        key = digest_texts(str(INDEX_VERSION), states, *settings, *_INDEX_ARRAYS)
        saved = load_or_build(f'tfds_{key}', self._index_rows, _INDEX_ARRAYS)
        contents, problems = array_to_json(saved['notes'])
        self.fingerprint = digest_texts('tfds', str(INDEX_VERSION), contents, self.split)
        self.problems = Problems.from_json(problems, self.problems.max_share)
        self.problems.check()
        good = saved['good']
        # This raises UserError if no row is valid.
        source = f'tfds {self._name} {self._tfds_split}'
        self._rows = good[select_rows('all', np.ones(len(good), bool), source, 0)]
        self._other_positives = find_other_positives(saved['x_id'], saved['y_id'])

    def _use_prepared(self, prepared: PreparedDirectory) -> None:
        """Takes rows and documents as launch/prepare.py has checked and stored them."""
        splits = self._tfds_split.split('+')
        contents = [prepared.get_contents(split) for split in splits]
        self.fingerprint = digest_texts('prepared', self.split, self._x, self._y, *contents)
        self._rows = range(len(self._data))
        self.problems.rows = len(self._data)
        self.documents = prepared.load_documents(splits)
        if (self._x, self._y) == ('x', 'y'):
            self.rules = prepared.list_rules(splits)
        if self.documents[-1] != len(self._data):
            raise UserError(
                f'{prepared.directory}: has {len(self._data):,} pairs and its documents '
                f'{self.documents[-1]:,}: prepare it again'
            )

    def _index_rows(self) -> Arrays:
        """Checks every row, and returns the indices of the valid ones.

        Returns:
          Arrays for a cache file: `good` int64[n], indices of the valid rows; `x_id` and `y_id`
          int32[n], the word ids of their texts; `notes`, a digest of the pairs and the problems.
        """
        problems = Problems()
        contents = blake2b(digest_size=16)
        good = []
        word_ids: list[tuple[int, int]] = []
        for row in tqdm(
            range(len(self._data)),
            desc=f'checking {self._name} {self._tfds_split}',
            unit='row',
            disable=None,
        ):
            problems.rows += 1
            try:
                pair = self._read_pair(row)
            except BadRow as error:
                problems.add(error, f'{self._name} {self._tfds_split}:{row}')
            else:
                good.append(row)
                word_ids.append((compute_word_id(pair.x), compute_word_id(pair.y)))
                numbers = map(repr, pair.scores)
                contents.update(digest_texts(pair.x, pair.y, *pair.negatives, *numbers).encode())
        x_id_N, y_id_N = np.array(word_ids, np.int32).reshape(-1, 2).T
        return {
            'good': np.array(good, np.int64),
            'x_id': x_id_N,
            'y_id': y_id_N,
            'notes': json_to_array([contents.hexdigest(), problems.to_json()]),
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        pair = self._read_pair(int(self._rows[index]))
        return pair._replace(positives=self._other_positives.find(index))

    def _read_pair(self, row: int) -> Pair:
        """Reads and checks a row. Raises BadRow if it is invalid."""
        example = self._data[row]
        x = decode_text_field(self._x, _get_field(example, self._x), self._max_chars)
        y = decode_text_field(self._y, _get_field(example, self._y), self._max_chars)
        values = _get_field(example, self._negatives) if self._negatives else ()
        negatives = tuple(
            decode_text_field(self._negatives, value, self._max_chars) for value in values
        )
        name = f'{self._name} {self._tfds_split}:{row}'
        return Pair(x, y, negatives, name, scores=self._get_scores(example, len(negatives)))

    def _get_scores(self, example: dict, negatives: int) -> tuple[float, ...]:
        """Returns the scores of y and its hard negatives, or the grade of the pair."""
        if self._score:
            grade = np.asarray(_get_field(example, self._score)).tolist()
            return (parse_number(self._score, grade),)
        if not self._scores:
            return ()
        values = [np.asarray(_get_field(example, name)).tolist() for name in self._scores]
        return parse_scores(self._scores, values, 1, [True] * negatives)[0]

    def summary(self) -> str:
        """Returns one line: the number of pairs and rows, and the problems of the rejected rows."""
        problems = self.problems.summary() or 'all rows can be used'
        return (
            f'tfds {self._name}/{self.split}: {len(self):,} pairs of {self.problems.rows:,} rows; '
            f'{problems}{self._describe_removed_texts()}'
        )

    def _describe_removed_texts(self) -> str:
        """Returns a phrase about texts of test sets; '' if launch/prepare.py is not the writer."""
        if not self.is_prepared:
            return ''
        if self.searched_sets is None:
            return '; not compared with test sets'
        sets = len(self.searched_sets)
        return f'; {self._removed_pairs:,} with texts of {sets:,} test sets were removed'


def _check_whole_splits(path: str, known: Sequence[str], train: str, heldout: str) -> None:
    """Raises UserError if the splits of launch/prepare.py are divided: documents would be, too."""
    for key, value in (('train_split', train), ('heldout_split', heldout)):
        if any(split and split not in known for split in value.split('+')):
            raise UserError(
                f'{key}={value!r}: {path} was written by launch/prepare.py and has the splits '
                f'{", ".join(known)}, which are read as a whole: name one of them; --config.output.'
                f'holdout of launch/prepare.py holds documents out'
            )


def _check_no_numbers(path: str, scores: str, score: str) -> None:
    """Raises UserError if numbers are to be read from the texts of launch/prepare.py."""
    for key, value in (('scores', scores), ('score', score)):
        if value:
            raise UserError(
                f'{key}={value}: {path} was written by launch/prepare.py, which keeps no numbers: '
                f"remove {key}, or read rows with numbers as JSON lines (kind='jsonl')"
            )


def _fetch_data_set(name: str, data_dir: str | None, verify: bool) -> str | None:
    """Returns the data_dir to read; one in the cache if `data_dir` is remote or on a slow mount."""
    if not data_dir:
        return None
    folder, *parts = name.replace(':', '/').split('/')
    is_slow = not is_remote(data_dir) and is_slower_than_cache(Path(data_dir, folder))
    if not is_slow and not is_remote(data_dir):
        return data_dir
    url = f'file://{Path(data_dir).absolute()}' if is_slow else data_dir.rstrip('/')
    found = RemoteFiles.find(f'{url}/{folder}', 'data_dir', must_exist=not is_slow)
    if parts and '*' not in name:  # a config, a version or both
        prefix = '/'.join(parts) + '/'
        found = found.select(lambda path: path.startswith(prefix))
    size = sum(file.size for file in found.files.values())
    if is_slow and not fits_into_cache(size, data_dir):
        return data_dir
    return str(found.copy(verify).parent) if found.files else data_dir


def _open_builder(name: str, data_dir: str | None) -> 'tfds.core.DatasetBuilder':
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
            f'tfds dataset {name!r} not found, neither in data_dir ({where}) nor among the '
            f'datasets of tfds: correct name or data_dir'
        ) from None
    except (ValueError, ImportError, OSError, AssertionError) as error:
        raise UserError(
            f'the tfds dataset {name!r} cannot be opened in {where}: {_get_first_line(error)}'
        ) from None
    return builder


def _open_directory(directory: Path) -> 'tfds.core.DatasetBuilder':
    import tensorflow_datasets as tfds

    if not (directory / 'dataset_info.json').is_file():
        raise UserError(
            f'path: {directory} has no dataset_info.json: name the output directory of '
            f'launch/prepare.py, or the directory NAME/VERSION of a tfds dataset'
        )
    try:
        return tfds.builder_from_directory(directory)
    except (ValueError, OSError, AssertionError) as error:
        raise UserError(f'path: {directory} cannot be opened: {_get_first_line(error)}') from None


def _digest_file_states(builder: 'tfds.core.DatasetBuilder', verify: bool) -> str:
    """Returns a digest of the paths and the states of the dataset's files.

    For files in a bucket, the states are their sizes and modification times.
    """
    paths = sorted(builder.data_path.iterdir())
    if '://' not in str(builder.data_path):
        local = [InputFile(path.name, Path(path)) for path in paths if path.is_file()]
        return digest_file_states(local, verify)
    stats = ((path, path.stat()) for path in paths)
    return digest_texts(*(f'{path} {stat.length} {stat.mtime}' for path, stat in stats))


def _get_first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_field(builder: 'tfds.core.DatasetBuilder', name: str) -> None:
    known = list(_list_field_names(builder.info.features, ''))
    if name not in known:
        raise UserError(
            f'the tfds dataset {builder.info.full_name!r} has no field {name!r}; it has '
            f'{", ".join(known)}'
        )


def _list_field_names(features: 'tfds.features.FeatureConnector', prefix: str) -> Iterator[str]:
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        yield prefix + name
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _list_field_names(feature, f'{prefix}{name}/')


def _get_field(example: dict, name: str) -> Any:
    value: Any = example
    for part in name.split('/'):
        value = value[part]
    return value
