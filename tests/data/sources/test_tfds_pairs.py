import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

import cpt_jax
from cpt_jax.data.pairs import Pair
from cpt_jax.data.positives import compute_word_id
from cpt_jax.data.sources import tfds_pairs
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder

ROWS = {'train': 30, 'test': 5, 'dirty': 10}
DIRTY = {2: b'caf\xe9', 5: ' ', 7: 'a' * 60}


class TinyPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Questions and answers from an ordinary tfds builder; the split 'dirty' has bad rows."""

    # Pretends that the class has its own file. tfds looks for it, and requires importlib_resources
    # if it is in a folder `tests`.
    __module__ = 'tiny_pairs'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        text = tfds.features.Text()
        features = {
            'question': {'text': text},
            'answer': text,
            'hard': tfds.features.Sequence(text),
            'n': np.int64,
            'teacher': {'y': np.float32, 'hard': tfds.features.Sequence(np.float32)},
            'scores': tfds.features.Sequence(np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ROWS}

    def _generate_examples(self, split):
        for i in range(ROWS[split]):
            hard = range(i % 3)
            scores = [i + 0.5, *(-j / 4 for j in hard)]
            answer = DIRTY.get(i, 'bad') if split == 'dirty' else f'answer {split} {i} é'
            yield (
                i,
                {
                    'question': {'text': f'question {i}'},
                    'answer': answer,
                    'hard': [f'no {j}' for j in hard],
                    'n': i,
                    'teacher': {'y': scores[0], 'hard': scores[1:]},
                    'scores': scores if i % 10 else [],
                },
            )


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('tfds'))
    TinyPairs(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


def open_tiny(data_dir, split, **more):
    return TfdsSource(
        **{
            'name': 'tiny_pairs',
            'x': 'question/text',
            'y': 'answer',
            'data_dir': data_dir,
            'split': split,
            **more,
        }
    )


def pairs(source):
    return [source[i] for i in range(len(source))]


def test_positives_of_equal_x_are_found(data_dir):
    """The splits 'train' and 'test' share their first questions."""
    source = open_tiny(data_dir, 'all')
    assert source.most_positives == 1
    answers = [compute_word_id(f'answer {split} 3 é') for split in ('train', 'test')]
    for pair in pairs(source):
        number = int(pair.x.split()[1])
        assert len(pair.positives) == (2 if number < ROWS['test'] else 0)
        assert number != 3 or sorted(pair.positives) == sorted(answers)
    assert open_tiny(data_dir, 'train').most_positives == 0
    assert open_tiny(data_dir, 'heldout', heldout_split='').most_positives == 0


@pytest.mark.parametrize('name', ['tiny_pairs', 'tiny_pairs:1.0.0'])
def test_data_set_in_a_bucket_is_copied(data_dir, name):
    store = fsspec.filesystem('memory')
    try:
        store.put(data_dir, '/bucket/tfds', recursive=True)
        store.pipe('/bucket/tfds/other/large', b'')
        source = open_tiny('memory://bucket/tfds', 'all', name=name)
        local = open_tiny(data_dir, 'all', name=name)
        assert pairs(source) == pairs(local) and source.fingerprint == local.fingerprint
        assert not [*get_cache_folder().rglob('large')]
    finally:
        store.store.clear()
        store.pseudo_dirs[:] = ['']


def test_data_set_on_a_slow_mount_is_copied_if_it_fits(data_dir, monkeypatch, caplog):
    expected = pairs(open_tiny(data_dir, 'train'))
    monkeypatch.setattr(tfds_pairs, 'is_slower_than_cache', lambda path: True)
    source = open_tiny(data_dir, 'train')
    assert pairs(source) == expected
    (copy,) = get_cache_folder().glob('remote/*/tiny_pairs/1.0.0')
    assert len([*copy.glob('*.array_record*')]) == len(ROWS) and not caplog.records
    monkeypatch.setattr('cpt_jax.storage.cache.get_free_bytes', lambda folder: 10)
    assert pairs(open_tiny(data_dir, 'train')) == expected
    assert 'do not fit into the cache' in caplog.text


def test_splits_and_fields_are_read(data_dir):
    train, heldout, whole = (
        open_tiny(data_dir, split, negatives='hard') for split in ('train', 'heldout', 'all')
    )
    expected = {
        (f'question {i}', f'answer train {i} é', tuple(f'no {j}' for j in range(i % 3)))
        for i in range(30)
    }
    assert {pair[:3] for pair in pairs(train)} == expected
    assert sorted(pair.y for pair in pairs(heldout)) == [f'answer test {i} é' for i in range(5)]
    assert [pair[:3] for pair in pairs(whole)] == [
        pair[:3] for pair in pairs(train) + pairs(heldout)
    ]
    assert isinstance(train[0], Pair)
    assert train[0].id == 'tiny_pairs train:0'
    assert train.documents is None
    without_negatives = open_tiny(data_dir, 'train')
    sources = (train, heldout, whole, without_negatives)
    assert len({source.fingerprint for source in sources}) == 4


def test_scores_and_grades_are_read(data_dir):
    given = {'negatives': 'hard', 'scores': 'teacher/y, teacher/hard'}
    source = open_tiny(data_dir, 'train', **given)
    for pair in pairs(source):
        i = int(pair.x.split()[1])
        assert pair.scores == (i + 0.5, *(-j / 4 for j in range(i % 3)))
        assert len(pair.negatives) == i % 3
    graded = open_tiny(data_dir, 'train', score='n')
    assert all(pair.scores == (float(pair.x.split()[1]),) for pair in pairs(graded))
    other = open_tiny(data_dir, 'train', negatives='hard')
    assert other.fingerprint != source.fingerprint and other[0].scores == ()

    bad = {'negatives': 'hard', 'scores': 'scores'}
    listed = open_tiny(data_dir, 'train', **bad, max_bad_share=0.5)
    kind = "'scores': not as many scores as texts"
    assert listed.problems.counts == {kind: 3}  # of the rows 0, 10 and 20
    assert {pair.scores for pair in pairs(listed)} < {pair.scores for pair in pairs(source)}


@pytest.mark.parametrize('keys', [('scores', 'score'), ('score', 'scores')])
def test_indices_of_scores_and_of_grades_are_separate(data_dir, monkeypatch, tmp_path, keys):
    """Grades are valid in all 30 rows, and scores in the 10 without hard negatives."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path))
    rows = {}
    for key in keys:
        source = open_tiny(data_dir, 'train', negatives='hard', max_bad_share=1, **{key: 'n'})
        rows[key] = len(pairs(source))
    assert rows == {'scores': 10, 'score': 30}


def test_slices_and_an_empty_heldout_split_are_supported(data_dir):
    first = open_tiny(data_dir, 'train', train_split='train[:80%]')
    rest = open_tiny(data_dir, 'heldout', heldout_split='train[80%:]')
    assert (len(first), len(rest)) == (24, 6)
    assert not {pair.x for pair in pairs(first)} & {pair.x for pair in pairs(rest)}
    assert len(open_tiny(data_dir, 'heldout', heldout_split='')) == 0
    assert len(open_tiny(data_dir, 'all', heldout_split='')) == 30


def test_bad_rows_are_skipped_counted_and_reported(data_dir):
    source = open_tiny(data_dir, 'train', train_split='dirty', max_chars=50, max_bad_share=0.3)
    assert {pair.y for pair in pairs(source)} == {'bad'}
    assert len(source) == 7
    assert source.problems.counts == {
        "'answer' is not UTF-8": 1,
        "'answer' is empty": 1,
        "'answer' is longer than 50 characters": 1,
    }
    with pytest.raises(
        UserError, match=r"^tiny_pairs dirty:\d: 'answer' is .*3 of 10 rows cannot be used"
    ):
        open_tiny(data_dir, 'train', train_split='dirty', max_chars=50)


def test_second_use_reads_the_cached_index(data_dir, monkeypatch):
    first = open_tiny(data_dir, 'train')
    with monkeypatch.context() as patch:
        patch.setattr(tfds_pairs.TfdsSource, '_index_rows', None)  # a call would fail
        second = open_tiny(data_dir, 'train')
    assert pairs(second) == pairs(first)
    assert second.fingerprint == first.fingerprint
    assert second.summary() == first.summary()


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'name': 'no_such_pairs'},
            "tfds dataset 'no_such_pairs' not found, neither in data_dir",
        ),
        (
            {'data_dir': '/nowhere'},
            r"tfds dataset 'tiny_pairs' not found, neither in data_dir \(/nowhere\)",
        ),
        (
            {'name': 'mnist'},
            "the tfds dataset 'mnist' is not prepared in .*: run tfds build "
            '--file_format=array_record mnist',
        ),
        (
            {'train_split': 'validation'},
            "split 'validation' of the tfds dataset 'tiny_pairs': Unknown split 'validation'",
        ),
        ({'x': 'query'}, "'tiny_pairs/1.0.0' has no field 'query'; it has .*question/text"),
        ({'negatives': 'question/none'}, "has no field 'question/none'"),
        ({'scores': 'grades'}, "has no field 'grades'"),
        ({'scores': 'scores', 'score': 'n'}, 'scores=scores and score=n: .* remove one'),
        ({'score': 'answer'}, "^tiny_pairs train:0: 'answer' is not a number: b'answer train"),
        (
            {'scores': 'scores', 'negatives': 'hard'},
            r"^tiny_pairs train:\d+: 'scores': not as many scores as texts: \d scores of 1 pos",
        ),
        ({'y': 'n'}, "^tiny_pairs train:0: 'n' is not text; 30 of 30 rows"),
        ({'x': 'question'}, "^tiny_pairs train:0: 'question' is not text; 30 of 30 rows"),
    ],
)
def test_invalid_argument_gives_a_one_line_error(data_dir, change, message):
    with pytest.raises(UserError, match=message) as error:
        open_tiny(**{'data_dir': data_dir, 'split': 'train', **change})
    assert '\n' not in str(error.value)


def test_tfrecord_dataset_gives_a_one_line_error(data_dir, tmp_path):
    """TFRecord files cannot be read by index."""
    folder = tmp_path / 'tiny_pairs' / '1.0.0'
    folder.mkdir(parents=True)
    for name in ('dataset_info.json', 'features.json'):
        text = Path(data_dir, 'tiny_pairs', '1.0.0', name).read_text()
        (folder / name).write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(
        UserError, match="split 'train' of the tfds dataset 'tiny_pairs': .*not supported"
    ) as error:
        open_tiny(str(tmp_path), 'train')
    assert '\n' not in str(error.value)


def test_tensorflow_is_not_imported(data_dir):
    program = (
        'import sys; from cpt_jax.data.sources.tfds_pairs import TfdsSource;'
        f'source = TfdsSource("tiny_pairs", "train", "question/text", "answer", '
        f'data_dir={data_dir!r});'
        'assert len(source) == 30 and source[3].x;'
        'assert "tensorflow" not in sys.modules and "jax" not in sys.modules'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        cwd=Path(cpt_jax.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
