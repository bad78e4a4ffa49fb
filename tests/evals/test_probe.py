import json

import numpy as np
import pytest
import torch
from etils import epath
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from benchmarks import probe_speed
from cpt_jax.errors import UserError
from cpt_jax.evals import logistic, probe, senteval_probe
from cpt_jax.evals.senteval_data import LAYOUTS, Data, stratified_folds
from cpt_jax.evals.suite import find_tasks
from tests.evals.senteval_files import bag_of_words, write_all, write_mrpc, write_sst, write_trec, write_two_files


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp('data'))


def blobs(samples, classes, width=24, seed=0, apart=0.35):
    """float32[n, D] unit vectors around one centre a class, far from the origin; and their classes."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, classes, samples)
    x_NxD = apart * rng.standard_normal((classes, width))[labels_N] + rng.standard_normal((samples, width)) + 0.5
    return (x_NxD / np.linalg.norm(x_NxD, axis=1, keepdims=True)).astype(np.float32), labels_N


def sklearn_score(name, folder):
    """The protocol lbfgs, in scikit-learn's words."""
    x, y, part = probe.read_samples(Data(name, epath.Path(folder) / 'senteval'), bag_of_words)
    model, train, test = LogisticRegression(max_iter=9999, tol=1e-8), np.flatnonzero(part == 'train'), np.flatnonzero(part == 'test')
    if name == 'SST2':
        dev = part == 'dev'
        best = max((clone(model).set_params(C=c).fit(x[train], y[train]) for c in probe.STRENGTHS), key=lambda m: m.score(x[dev], y[dev]))
        return best.score(x[test], y[test])
    search = GridSearchCV(model, {'C': probe.STRENGTHS}, cv=StratifiedKFold(probe.INNER_FOLDS, shuffle=True, random_state=probe.SEED))
    outer = StratifiedKFold(probe.FOLDS, shuffle=True, random_state=probe.SEED)
    turns = outer.split(x, y) if name == 'MR' else [(train, test)]
    return np.mean([search.fit(x[train], y[train]).score(x[test], y[test]) for train, test in turns])


@pytest.mark.parametrize('name', ['MR', 'SST2', 'TREC', 'MRPC'])
def test_to_convergence_equals_scikit_learn(data_dir, name, monkeypatch):
    for constant, value in {'FOLDS': 4, 'INNER_FOLDS': 3, 'STRENGTHS': (1.0, 16.0, 256.0)}.items():
        monkeypatch.setattr(probe, constant, value)
    result = find_tasks(str(data_dir))[f'probe/{name}'].run(bag_of_words)
    assert result.main_score == pytest.approx(sklearn_score(name, data_dir), abs=1e-9)
    assert result.settings['converged'] and 0.5 < result.main_score < 1
    json.dumps(result.settings)


@pytest.mark.parametrize('classes', [2, 5])
def test_every_fit_equals_scikit_learn(classes):
    x_NxD, labels_N = blobs(500, classes)
    train_FxN = np.random.default_rng(1).random((3, 500)) < 0.7
    strengths = [0.01, 1, 100, 10_000]
    fits = logistic.fit(x_NxD, labels_N, train_FxN, strengths, classes)
    assert fits.converged
    for train_N, predicted_GxN in zip(train_FxN, fits.predicted_FxGxN, strict=True):
        for strength, predicted_N in zip(strengths, predicted_GxN, strict=True):
            other = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000).fit(x_NxD[train_N], labels_N[train_N])
            assert (other.predict(x_NxD) != predicted_N).mean() <= 0.002  # one sample on the border


def test_features_that_say_nothing_and_too_few_samples():
    """Columns without variance, copies of columns, and more columns than samples: the penalty still gives one answer."""
    x_NxD, labels_N = blobs(30, 2, width=20)
    x_NxD = np.concatenate([x_NxD, x_NxD, np.ones((30, 5), np.float32)], axis=1)
    fits = logistic.fit(x_NxD, labels_N, np.ones((1, 30), bool), [1.0, 1000.0], 2)
    expected = [LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x_NxD, labels_N).predict(x_NxD) for c in (1, 1000)]
    assert fits.converged and (fits.predicted_FxGxN[0] == expected).all()


@pytest.mark.parametrize(('samples', 'classes', 'folds'), [(100, 2, 10), (503, 3, 10), (60, 6, 5)])
def test_folds_are_those_of_scikit_learn(samples, classes, folds):
    labels_N = np.append(np.arange(classes).repeat(folds), np.random.default_rng(0).integers(0, classes, samples))
    fold_N = stratified_folds(labels_N, folds, 1111)
    splits = StratifiedKFold(folds, shuffle=True, random_state=1111).split(labels_N, labels_N)
    for fold, (_, test) in enumerate(splits):
        np.testing.assert_array_equal(np.flatnonzero(fold_N == fold), test)


@pytest.mark.parametrize(('width', 'classes'), [(384, 2), (7, 6)])
def test_first_weights_are_those_of_torch(width, classes):
    torch.manual_seed(1111)
    layer = torch.nn.Linear(width, classes)
    expected = np.concatenate([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]], axis=1)
    np.testing.assert_allclose(senteval_probe.first_weights(width, classes), expected, rtol=0, atol=1e-7 / np.sqrt(width))


@pytest.mark.parametrize('classes', [2, 3])
def test_each_fit_is_that_of_torch(classes, monkeypatch):
    """Sizes beside a multiple of the batch, so that a fold lacks the last batch of another; with and without a validation set."""
    monkeypatch.setattr(senteval_probe, 'CHECKS', 12)
    monkeypatch.setattr(senteval_probe, 'TENACITY', 2)
    x_NxD, labels_N = blobs(300, classes)
    trains = [np.arange(128), np.arange(50, 50 + 129), np.arange(40, 40 + 200)]
    splits = senteval_probe.Splits()
    given = [splits.given(train, np.setdiff1d(np.arange(300), train)[: 60 + i]) for i, train in enumerate(trains)]
    drawn = [splits.drawn(trains[2])]
    decays = np.tile(np.array([1e-5, 1e-2], np.float32), (4, 1))
    fits = senteval_probe.fit(x_NxD, labels_N, given + drawn, decays, classes)
    for split, right_G, w_GxKxE in zip(given + drawn, fits.right_FxG, fits.w_FxGxKxE, strict=True):
        for g, decay in enumerate((1e-5, 1e-2)):
            validation = None if split is drawn[0] else (x_NxD[split.validation], labels_N[split.validation])
            train = trains[2] if split is drawn[0] else split.train
            best, layer = probe_speed.torch_fit(x_NxD[train], labels_N[train], classes, decay, validation)
            assert right_G[g] == round(best * len(split.validation))
            np.testing.assert_allclose(w_GxKxE[g, :, :-1], layer.weight.detach().numpy(), atol=2e-5)
            np.testing.assert_allclose(w_GxKxE[g, :, -1], layer.bias.detach().numpy(), atol=2e-5)


@pytest.mark.parametrize('name', ['CR', 'SST2', 'TREC', 'MRPC'])
def test_sentevals_protocol_equals_its_loop_in_torch(data_dir, name, monkeypatch):
    monkeypatch.setattr(senteval_probe, 'CHECKS', 3)
    monkeypatch.setattr(probe, 'FOLDS', 4)
    result = find_tasks(str(data_dir), probe_protocol='senteval')[f'probe/{name}'].run(bag_of_words)
    samples = probe.read_samples(Data(name, epath.Path(data_dir) / 'senteval'), bag_of_words)
    turns = probe.make_turns(samples, 4)
    expected = probe_speed.torch_probe(samples, turns, len(LAYOUTS[name].classes))
    assert result.main_score == pytest.approx(np.mean(expected), abs=0.005)
    assert 'Adam' in result.settings['protocol']


def test_the_last_check_is_the_one_after_tenacity_misses_and_one(monkeypatch):
    """The validation labels are all wrong for a classifier that learns: its first check stays the best, and 6 more follow."""
    x_NxD, labels_N = blobs(200, 2, apart=5)
    labels_N[150:] = 1 - labels_N[150:]
    split = senteval_probe.Splits().given(np.arange(150), np.arange(150, 200))
    long = senteval_probe.fit(x_NxD, labels_N, [split], [[1e-5]], 2)
    best, layer = probe_speed.torch_fit(x_NxD[:150], labels_N[:150], 2, 1e-5, (x_NxD[150:], labels_N[150:]))
    assert long.right_FxG[0, 0] == round(best * 50)
    np.testing.assert_allclose(long.w_FxGxKxE[0, 0, :, :-1], layer.weight.detach().numpy(), atol=2e-5)


def test_f1_and_majority_of_pairs(data_dir):
    result = find_tasks(str(data_dir))['probe/MRPC'].run(bag_of_words)
    labels = Data('MRPC', epath.Path(data_dir) / 'senteval').part('test').labels
    assert result.counted == 'pairs' and result.n == 50
    assert result.baselines['majority'] == pytest.approx({'accuracy': labels.mean(), 'f1': f1_score(labels, np.ones(50))})
    assert probe._f1(np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1])) == pytest.approx(f1_score([1, 1, 0, 1], [1, 0, 1, 1]))
    assert probe._f1(np.zeros(3), np.zeros(3)) == 0


def test_samples_are_sorted_by_words_then_label_and_blank_lines_count(tmp_path):
    folder = tmp_path / 'MR'
    folder.mkdir()
    (folder / 'rt-polarity.pos').write_bytes(b'caf\xe9  au lait \nb\n\n')
    (folder / 'rt-polarity.neg').write_bytes(b'c\nd e f\n')
    part = Data('MR', epath.Path(tmp_path)).part('all')
    assert part.texts == (['.', 'c', 'b', 'd e f', 'café au lait'],)
    assert part.labels.tolist() == [1, 0, 1, 0, 1]


def test_pairs_keep_quotation_marks_and_lose_the_mark_at_the_start(data_dir):
    part = Data('MRPC', epath.Path(data_dir) / 'senteval').part('train')
    assert len(part.labels) == 160 and part.texts[0][0].endswith(' "')
    u, v = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    assert probe.pair_features(u, v).tolist() == [[2.0, 3.0, 3.0, -2.0]]


def test_the_tasks_are_those_whose_folder_is_there(tmp_path):
    write_two_files(tmp_path / 'senteval' / 'CR', 'custrev.pos', 'custrev.neg')
    assert [name for name in find_tasks(str(tmp_path)) if 'codesearch' not in name] == ['probe/CR']


def wrong(tmp_path, name, write, file, content):
    write(tmp_path / LAYOUTS[name].folder)
    (tmp_path / LAYOUTS[name].folder / file).write_text(content)
    with pytest.raises(UserError) as error:
        probe.Probe(f'probe/{name}', Data(name, epath.Path(tmp_path))).run(bag_of_words)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ('name', 'write', 'file', 'content', 'message'),
    [
        ('SST2', write_sst, 'sentiment-dev', 'good one\t1\nno label\n', 'sentiment-dev:2: a sentence, a tab and the label 0 or 1'),
        ('SST2', write_sst, 'sentiment-test', 'good\t2\n', 'sentiment-test:1: a sentence'),
        ('SST2', write_sst, 'sentiment-train', 'good\t1\nfine\t1\n', 'sentiment-train: all 2 samples are of one class'),
        ('TREC', write_trec, 'TREC_10.label', 'HUM:ind Who ?\nWho is it ?\n', 'TREC_10.label:2: CLASS:subclass'),
        ('TREC', write_trec, 'train_5500.label', 'XX:ind Who ?\n', 'train_5500.label:1: CLASS:subclass'),
        ('MRPC', write_mrpc, 'msr_paraphrase_train.txt', 'Quality\n1\t2\t3\ta b\n', 'msr_paraphrase_train.txt:2: label 0 or 1, two ids'),
    ],
)
def test_a_wrong_line_is_named(tmp_path, name, write, file, content, message):
    assert message in wrong(tmp_path, name, write, file, content)


def test_too_few_samples_for_the_folds(tmp_path):
    write_two_files(tmp_path / 'CR', 'custrev.pos', 'custrev.neg', count=9)
    with pytest.raises(UserError, match='9 samples of class 0 are too few for 10 folds'):
        probe.Probe('probe/CR', Data('CR', epath.Path(tmp_path))).run(bag_of_words)


def test_a_missing_file_and_vectors_that_are_not_finite(tmp_path):
    write_sst(tmp_path / 'SST' / 'binary')
    task = probe.Probe('probe/SST2', Data('SST2', epath.Path(tmp_path)))
    with pytest.raises(UserError, match='not finite .200 of 200 texts'):
        task.run(lambda texts, side: np.full((len(texts), 4), np.nan, np.float32))
    (tmp_path / 'SST' / 'binary' / 'sentiment-dev').unlink()
    with pytest.raises(
        UserError, match='binary: no sentiment-dev; SentEval has sentiment-train, sentiment-dev, sentiment-test in data/downstream'
    ):
        probe.Probe('probe/SST2', Data('SST2', epath.Path(tmp_path))).run(bag_of_words)


def test_sentences_are_embedded_once_for_all_tasks(data_dir):
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
