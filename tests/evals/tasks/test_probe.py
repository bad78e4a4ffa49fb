"""Linear probes with both protocols. The expected values from scikit-learn and torch are in a
golden file.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from etils import epath

from cpt_jax.benchmark_data.senteval import LAYOUTS, SentEvalSet, assign_stratified_folds
from cpt_jax.evals.fit import logistic, senteval_probe
from cpt_jax.evals.registry import find_tasks
from cpt_jax.evals.tasks import probe
from cpt_jax.runtime.errors import UserError
from tests.evals.senteval_files import (
    bag_of_words,
    write_all,
    write_mrpc,
    write_sst,
    write_trec,
    write_two_files,
)
from tests.goldens.golden import read_golden

TO_CONVERGENCE = 'MR', 'SST2', 'TREC', 'MRPC'
SENTEVAL = 'CR', 'SST2', 'TREC', 'MRPC'
SMALL = {'FOLDS': 4, 'INNER_FOLDS': 3, 'STRENGTHS': (1.0, 16.0, 256.0)}
STRENGTHS = 0.01, 1, 100, 10_000
FOLDS = (100, 2, 10), (503, 3, 10), (60, 6, 5)
FIRST_WEIGHTS = (384, 2), (7, 6)
DECAYS = 1e-5, 1e-2
# Sizes around a multiple of the batch size, so one fold has fewer batches than the others.
TRAINS = np.arange(128), np.arange(50, 50 + 129), np.arange(40, 40 + 200)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def expected():
    """Results of scikit-learn and torch, by name."""
    return read_golden('probe').arrays


def make_blobs(samples, classes, width=24, seed=0, apart=0.35):
    """Returns float32[n, D] unit vectors around one center per class, far from the origin, and
    their classes.
    """
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, classes, samples)
    x_NxD = (
        apart * rng.standard_normal((classes, width))[labels_N]
        + rng.standard_normal((samples, width))
        + 0.5
    )
    return (x_NxD / np.linalg.norm(x_NxD, axis=1, keepdims=True)).astype(np.float32), labels_N


def make_three_splits(classes: int):
    """Returns samples, their classes, and the training masks of three folds."""
    x_NxD, labels_N = make_blobs(500, classes)
    return x_NxD, labels_N, np.random.default_rng(1).random((3, 500)) < 0.7


def degenerate():
    """Returns samples with constant columns, copied columns and more columns than samples, and
    their classes.
    """
    x_NxD, labels_N = make_blobs(30, 2, width=20)
    return np.concatenate([x_NxD, x_NxD, np.ones((30, 5), np.float32)], axis=1), labels_N


def make_fold_labels(samples: int, classes: int, folds: int) -> np.ndarray:
    drawn_N = np.random.default_rng(0).integers(0, classes, samples)
    return np.append(np.arange(classes).repeat(folds), drawn_N)


def make_fit_splits(classes: int):
    """Returns samples, their classes, splits with a given validation set, and a split that draws
    its own.
    """
    x_NxD, labels_N = make_blobs(300, classes)
    splits = senteval_probe.SplitMaker()
    given = [
        splits.make_split(train, np.setdiff1d(np.arange(300), train)[: 60 + i])
        for i, train in enumerate(TRAINS)
    ]
    return x_NxD, labels_N, given, splits.draw_split(TRAINS[2])


def make_contrary_samples():
    """Returns samples whose validation labels are flipped, so that training makes the validation
    accuracy worse; their classes; and the split.
    """
    x_NxD, labels_N = make_blobs(200, 2, apart=5)
    labels_N[150:] = 1 - labels_N[150:]
    split = senteval_probe.SplitMaker().make_split(np.arange(150), np.arange(150, 200))
    return x_NxD, labels_N, split


@contextmanager
def few_checks(checks: int, tenacity: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(senteval_probe, 'MAX_CHECKS', checks)
        patch.setattr(senteval_probe, 'TENACITY', tenacity)
        yield


@pytest.mark.parametrize('name', TO_CONVERGENCE)
def test_lbfgs_protocol_matches_scikit_learn(data_dir, expected, name, monkeypatch):
    for constant, value in SMALL.items():
        monkeypatch.setattr(probe, constant, value)
    result = find_tasks(str(data_dir))[f'probe/{name}'].run(bag_of_words)
    assert result.main_score == pytest.approx(float(expected[f'lbfgs/{name}']), abs=1e-9)
    assert result.settings['converged'] and 0.5 < result.main_score < 1
    values_N = result.item_scores.values['accuracy']
    assert len(values_N) == result.n and values_N.mean() == pytest.approx(result.main_score)
    json.dumps(result.settings)


@pytest.mark.parametrize('classes', [2, 5])
def test_each_fit_matches_scikit_learn(expected, classes):
    x_NxD, labels_N, train_UxN = make_three_splits(classes)
    fits = logistic.fit_logistic(x_NxD, labels_N, train_UxN, list(STRENGTHS), classes)
    assert fits.converged
    differ_UxAxN = fits.predicted_UxAxN != expected[f'predicted/{classes}']
    assert differ_UxAxN.shape == (3, 4, 500)
    assert differ_UxAxN.mean(axis=-1).max() <= 0.002  # one sample at the decision boundary


def test_degenerate_features_match_scikit_learn(expected):
    """The penalty makes the solution unique."""
    x_NxD, labels_N = degenerate()
    fits = logistic.fit_logistic(x_NxD, labels_N, np.ones((1, 30), bool), [1.0, 1000.0], 2)
    assert fits.converged
    np.testing.assert_array_equal(fits.predicted_UxAxN[0], expected['predicted/degenerate'])


@pytest.mark.parametrize(('samples', 'classes', 'folds'), FOLDS)
def test_folds_match_scikit_learn(expected, samples, classes, folds):
    fold_N = assign_stratified_folds(make_fold_labels(samples, classes, folds), folds, 1111)
    np.testing.assert_array_equal(fold_N, expected[f'folds/{samples}'])


@pytest.mark.parametrize(('width', 'classes'), FIRST_WEIGHTS)
def test_initial_weights_match_torch(expected, width, classes):
    np.testing.assert_allclose(
        senteval_probe.draw_first_weights(width, classes),
        expected[f'first weights/{width}'],
        rtol=0,
        atol=1e-7 / np.sqrt(width),
    )


@pytest.mark.parametrize('classes', [2, 3])
def test_senteval_fits_match_torch(expected, classes):
    """Compares fits with a given and with a drawn validation set."""
    x_NxD, labels_N, given, drawn = make_fit_splits(classes)
    splits = [*given, drawn]
    decays = np.tile(np.array(DECAYS, np.float32), (4, 1))
    with few_checks(12, 2):
        fits = senteval_probe.fit_probes(x_NxD, labels_N, splits, decays, classes)
    accuracies_UxA = expected[f'fit/{classes}/accuracy'].reshape(4, 2)
    for split, right_A, accuracy_A in zip(splits, fits.right_UxA, accuracies_UxA, strict=True):
        assert right_A.tolist() == [round(best * len(split.validation)) for best in accuracy_A]
    weights = expected[f'fit/{classes}/weights'].reshape(fits.w_UxAxYxE.shape)
    np.testing.assert_allclose(fits.w_UxAxYxE, weights, rtol=0, atol=2e-5)


@pytest.mark.parametrize('name', SENTEVAL)
def test_senteval_protocol_matches_its_loop_in_torch(data_dir, expected, name, monkeypatch):
    monkeypatch.setattr(senteval_probe, 'MAX_CHECKS', 3)
    monkeypatch.setattr(probe, 'FOLDS', SMALL['FOLDS'])
    result = find_tasks(str(data_dir), probe_protocol='senteval')[f'probe/{name}'].run(bag_of_words)
    assert result.main_score == pytest.approx(float(expected[f'senteval/{name}']), abs=0.005)
    assert 'Adam' in result.settings['protocol']


def test_training_stops_one_check_after_the_tenacity(expected):
    """The first check remains the best one, and 6 more checks follow."""
    x_NxD, labels_N, split = make_contrary_samples()
    long = senteval_probe.fit_probes(x_NxD, labels_N, [split], [[1e-5]], 2)
    assert long.right_UxA[0, 0] == round(float(expected['tenacity/accuracy']) * 50)
    np.testing.assert_allclose(
        long.w_UxAxYxE[0, 0], expected['tenacity/weights'], rtol=0, atol=2e-5
    )


def test_pairs_have_f1_and_a_majority_baseline(data_dir, expected):
    result = find_tasks(str(data_dir))['probe/MRPC'].run(bag_of_words)
    labels = SentEvalSet('MRPC', epath.Path(data_dir) / 'senteval').read_part('test').labels
    assert result.counted == 'pairs' and result.n == 50
    assert result.settings['vectors'] == 'of unit length'
    longer = find_tasks(str(data_dir))['probe/MRPC'].run(lambda *args: 2 * bag_of_words(*args))
    assert longer.settings['vectors'] == 'of any length'
    # The baseline predicts that all pairs are paraphrases: its recall is 1.
    precision = labels.mean()
    assert result.baselines['majority'] == pytest.approx(
        {'accuracy': precision, 'f1': 2 * precision / (precision + 1)}
    )
    assert probe._compute_f1(np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1])) == pytest.approx(
        float(expected['f1'])
    )
    folds = [np.array([1, 1]), np.array([1, 0, 0])]
    values_N = probe._score_samples(folds, [np.array([1, 0]), np.array([1, 0, 0])])
    assert values_N.tolist() == pytest.approx([1.25, 0, 2.5 / 3, 2.5 / 3, 2.5 / 3])
    assert values_N.mean() == pytest.approx(0.75)  # of the accuracies 1/2 and 1
    assert probe._compute_f1(np.zeros(3), np.zeros(3)) == 0


def test_samples_are_sorted_and_blank_lines_count(tmp_path):
    folder = tmp_path / 'MR'
    folder.mkdir()
    (folder / 'rt-polarity.pos').write_bytes(b'caf\xe9  au lait \nb\n\n')
    (folder / 'rt-polarity.neg').write_bytes(b'c\nd e f\n')
    part = SentEvalSet('MR', epath.Path(tmp_path)).read_part('all')
    assert part.texts == (['.', 'c', 'b', 'd e f', 'café au lait'],)
    assert part.labels.tolist() == [1, 0, 1, 0, 1]


def test_mrpc_keeps_quotation_marks_and_drops_the_byte_order_mark(data_dir):
    part = SentEvalSet('MRPC', epath.Path(data_dir) / 'senteval').read_part('train')
    assert len(part.labels) == 160 and part.texts[0][0].endswith(' "')
    u, v = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    assert probe.make_pair_features(u, v).tolist() == [[2.0, 3.0, 3.0, -2.0]]


def test_only_tasks_with_data_are_found(tmp_path):
    write_two_files(tmp_path / 'senteval' / 'CR', 'custrev.pos', 'custrev.neg')
    assert [name for name in find_tasks(str(tmp_path)) if 'codesearch' not in name] == ['probe/CR']


def get_error(tmp_path, name, write, file, content):
    """Returns the message of a task one of whose files has been overwritten."""
    write(tmp_path / LAYOUTS[name].folder)
    (tmp_path / LAYOUTS[name].folder / file).write_text(content)
    with pytest.raises(UserError) as error:
        probe.Probe(f'probe/{name}', SentEvalSet(name, epath.Path(tmp_path))).run(bag_of_words)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ('name', 'write', 'file', 'content', 'message'),
    [
        (
            'SST2',
            write_sst,
            'sentiment-dev',
            'good one\t1\nno label\n',
            'sentiment-dev:2: a sentence, a tab and the label 0 or 1',
        ),
        ('SST2', write_sst, 'sentiment-test', 'good\t2\n', 'sentiment-test:1: a sentence'),
        (
            'SST2',
            write_sst,
            'sentiment-train',
            'good\t1\nfine\t1\n',
            'sentiment-train: all 2 samples are of one class',
        ),
        (
            'TREC',
            write_trec,
            'TREC_10.label',
            'HUM:ind Who ?\nWho is it ?\n',
            'TREC_10.label:2: CLASS:subclass',
        ),
        (
            'TREC',
            write_trec,
            'train_5500.label',
            'XX:ind Who ?\n',
            'train_5500.label:1: CLASS:subclass',
        ),
        (
            'MRPC',
            write_mrpc,
            'msr_paraphrase_train.txt',
            'Quality\n1\t2\t3\ta b\n',
            'msr_paraphrase_train.txt:2: label 0 or 1, two ids',
        ),
    ],
)
def test_invalid_line_is_reported(tmp_path, name, write, file, content, message):
    assert message in get_error(tmp_path, name, write, file, content)


def test_too_few_samples_for_the_folds_are_reported(tmp_path):
    write_two_files(tmp_path / 'CR', 'custrev.pos', 'custrev.neg', count=9)
    with pytest.raises(UserError, match='9 samples of class 0 are too few for 10 folds'):
        probe.Probe('probe/CR', SentEvalSet('CR', epath.Path(tmp_path))).run(bag_of_words)


def test_missing_files_and_nonfinite_vectors_are_reported(tmp_path):
    write_sst(tmp_path / 'SST' / 'binary')
    task = probe.Probe('probe/SST2', SentEvalSet('SST2', epath.Path(tmp_path)))
    with pytest.raises(UserError, match='not finite .200 of 200 texts'):
        task.run(lambda texts, side: np.full((len(texts), 4), np.nan, np.float32))
    (tmp_path / 'SST' / 'binary' / 'sentiment-dev').unlink()
    with pytest.raises(
        UserError,
        match='binary: no sentiment-dev; SentEval has sentiment-train, sentiment-dev, '
        'sentiment-test in data/downstream',
    ):
        probe.Probe('probe/SST2', SentEvalSet('SST2', epath.Path(tmp_path))).run(bag_of_words)


def test_tasks_share_the_embeddings_of_a_model(data_dir):
    calls = []

    def embed(texts, side):
        calls.append(len(texts))
        return bag_of_words(texts, side)

    tasks = find_tasks(str(data_dir))
    for name in ('probe/SST2', 'knn/SST2', 'zeroshot/SST2'):
        tasks[name].run(embed)
    assert calls == [200, 60, 80, 2, 2, 2, 2]
    tasks['knn/SST2'].run(lambda texts, side: embed(texts, side))  # another model
    assert calls[7:] == [200, 80]
