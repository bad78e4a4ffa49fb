import json

import numpy as np
import pytest
from etils import epath

from cpt_jax.benchmark_data.senteval import SentEvalSet
from cpt_jax.evals.registry import find_tasks, select_tasks
from cpt_jax.evals.tasks.knn import (
    NearestNeighbours,
    compute_majority_accuracy,
    normalize_rows,
    predict_by_vote,
)
from cpt_jax.evals.tasks.zeroshot import ZeroShot, ZeroShotOptions, find_nearest_label
from cpt_jax.runtime.errors import UserError
from tests.evals.senteval_files import bag_of_words, write_sst
from tests.goldens.golden import read_golden

NEIGHBOURS = 1, 7, 51


@pytest.fixture
def sst(tmp_path):
    write_sst(tmp_path / 'senteval' / 'SST' / 'binary')
    return SentEvalSet('SST2', epath.Path(tmp_path) / 'senteval')


def draw_samples():
    """Returns unit vectors of samples and queries, and noisy classes of the samples."""
    rng = np.random.default_rng(0)
    samples_NxD = normalize_rows(rng.standard_normal((400, 8)).astype(np.float32))
    queries_QxD = normalize_rows(rng.standard_normal((90, 8)).astype(np.float32))
    labels_N = (samples_NxD[:, 0] + rng.standard_normal(400) > 0).astype(int)
    return samples_NxD, queries_QxD, labels_N


@pytest.mark.parametrize('k', NEIGHBOURS)
def test_odd_votes_match_scikit_learn(k):
    samples_NxD, queries_QxD, labels_N = draw_samples()
    expected_Q = read_golden('knn').arrays[f'predicted/{k}']
    np.testing.assert_array_equal(
        predict_by_vote(queries_QxD, samples_NxD, labels_N, k), expected_Q
    )


def test_ties_go_to_the_larger_sum_of_cosines():
    samples_NxD = normalize_rows(np.array([[1, 0.1], [0.3, 1], [1, 0.2], [1, 1]], np.float32))
    # The nearest sample has class 1, but class 0 has the larger sum of cosines.
    labels_N = np.array([1, 1, 0, 0])
    assert predict_by_vote(
        np.array([[1.0, 0.0]], np.float32), samples_NxD, labels_N, 4
    ).tolist() == [0]
    # k is larger than the number of samples.
    assert predict_by_vote(
        np.array([[1.0, 0.0]], np.float32), samples_NxD, labels_N, 256
    ).tolist() == [0]
    assert predict_by_vote(
        np.array([[1.0, 0.0]], np.float32), samples_NxD, labels_N, 1
    ).tolist() == [1]


def test_neighbors_come_only_from_the_training_set(sst):
    result = NearestNeighbours('knn/SST2', sst, 15).run(bag_of_words)
    train, test = sst.read_part('train'), sst.read_part('test')
    # Sentences with the same words in another order have the same vector, so the order of the
    # training set decides which of them are neighbors.
    assert result.main_score == pytest.approx(
        float(read_golden('knn').arrays['accuracy']), abs=0.05
    )
    assert result.n == 80 and result.settings['k'] == 15 and 'cosine' in result.settings['protocol']
    assert result.settings['test_sentences_in_train'] == sum(
        text in train.texts[0] for text in test.texts[0]
    )
    assert result.baselines == {'majority': {'accuracy': 0.5}}
    values_N = result.item_scores.values['accuracy']
    assert len(values_N) == 80 and values_N.mean() == pytest.approx(result.main_score)
    json.dumps(result.settings)


def test_zero_shot_predicts_the_nearest_label(sst):
    seen = {}

    def embed(texts, side):
        seen.setdefault(side, []).append(list(texts))
        table = {
            'negative': [1, 0],
            'positive': [0, 1],
            'negative it is': [0, 1],
            'positive it is': [1, 0],
        }
        good = [
            [
                sum(text.count(word) for word in words)
                for words in (['bad', 'dull', 'poor', 'flat'], ['good', 'fine'])
            ]
            for text in texts
        ]
        return np.array(
            [table.get(text, own) for text, own in zip(texts, good, strict=True)], np.float32
        )

    result = ZeroShot('zeroshot/SST2', sst, ZeroShotOptions(label_template='{} it is')).run(embed)
    words, description = (result.metrics[f'accuracy_{form}'] for form in ('words', 'description'))
    # The descriptions have the opposite labels, so the accuracies sum to 1, except for ties.
    assert words > 0.5 and words + description == pytest.approx(1, abs=0.3)
    assert result.metrics['accuracy_words_as_document'] == words
    assert seen['y'] == [['negative', 'positive'], ['negative it is', 'positive it is']]
    assert seen['x'][1:] == seen['y'] and len(seen['x'][0]) == 80
    assert result.main_score == description
    assert result.item_scores.values.keys() == result.metrics.keys()
    assert result.item_scores.values['accuracy_description'].mean() == pytest.approx(description)
    assert result.settings['labels']['description'] == ['negative it is', 'positive it is']
    json.dumps(result.settings)


def test_nearest_label_and_majority_accuracy():
    assert find_nearest_label(np.array([[1.0, 0], [0, 1], [1, 1]]), np.eye(2)).tolist() == [0, 1, 0]
    assert compute_majority_accuracy(np.array([0, 1, 1]), np.array([1, 0, 0, 0])) == 0.25


def test_invalid_labels_are_reported(sst):
    with pytest.raises(UserError, match='--label_words good: give 2 words, label 0 first'):
        ZeroShot('zeroshot/SST2', sst, ZeroShotOptions(label_words=['good']))
    with pytest.raises(UserError, match="--label_template 'a review': must contain {}"):
        ZeroShot('zeroshot/SST2', sst, ZeroShotOptions(label_template='a review'))


def test_message_contains_the_expected_layout(tmp_path):
    for name, layout in (
        ('knn/SST2', 'senteval/SST/binary/'),
        ('zeroshot/*', 'senteval/SST/binary/'),
        ('probe/MR', 'senteval/{MR,CR'),
    ):
        with pytest.raises(UserError) as error:
            select_tasks(find_tasks(str(tmp_path)), [name], str(tmp_path))
        assert layout in str(error.value) and str(tmp_path) in str(error.value)


def test_nonfinite_vectors_are_reported(sst):
    for task in (NearestNeighbours('knn/SST2', sst), ZeroShot('zeroshot/SST2', sst)):
        with pytest.raises(UserError, match='not finite'):
            task.run(lambda texts, side: np.full((len(texts), 4), np.inf, np.float32))
