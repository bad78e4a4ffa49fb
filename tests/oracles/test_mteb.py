"""Tests of our models in mteb, on its mock tasks."""

import mteb
import numpy as np
import pytest
from mteb import mocks
from mteb.models.models_protocols import EncoderProtocol
from scipy.stats import spearmanr

from cpt_jax.embed.load import load_embedder
from cpt_jax.evals import mteb_model
from tests.embed.test_embedder import write_run

TASKS = [
    'MockRetrievalTask',
    'MockSTSTask',
    'MockClassificationTask',
    'MockClusteringTask',
    'MockPairClassificationTask',
    'MockRerankingTask',
]


@pytest.fixture(scope='module')
def run(tmp_path_factory, tokenizer) -> str:
    return str(write_run(tmp_path_factory.mktemp('mteb') / 'mine', tokenizer))


def test_mteb_evaluates_the_model(run):
    model = mteb_model(run)
    assert isinstance(model, EncoderProtocol)
    meta = model.mteb_model_meta
    assert (meta.name, meta.revision, meta.max_tokens, meta.embed_dim, meta.framework) == (
        'cpt_jax/mine',
        'step_200',
        40,
        32,
        ['JAX'],
    )
    for name in TASKS:
        results = mteb.evaluate(model, getattr(mocks, name)(), cache=None, show_progress_bar=False)
        assert all(np.isfinite(result.get_score()) for result in results.task_results), name


def test_queries_and_documents_get_their_sides(run):
    embed = load_embedder(run)
    texts = ['a list', 'of files', 'and a parser']
    batches = [{'text': texts[:2]}, {'text': texts[2:]}]
    query = mteb.types.PromptType.query
    document = mteb.types.PromptType.document
    for model, prompt_type, side in [
        (mteb_model(run), query, 'x'),
        (mteb_model(run), document, 'y'),
        (mteb_model(run), None, 'x'),
        (mteb_model(run, symmetric='y'), None, 'y'),
    ]:
        found = model.encode(
            batches,
            task_metadata=None,
            hf_split='test',
            hf_subset='default',
            prompt_type=prompt_type,
        )
        np.testing.assert_allclose(found, embed(texts, side), atol=1e-6)
    np.testing.assert_allclose(model.similarity(found, found), found @ found.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(found, found), 1, atol=1e-5)


def test_sts_score_is_the_spearman_correlation_of_cosines(run):
    task = mocks.MockSTSTask()
    task.load_data()
    rows = task.dataset['test']
    embed = load_embedder(run)
    cosines = np.sum(embed(list(rows['sentence1']), 'x') * embed(list(rows['sentence2']), 'x'), 1)
    results = mteb.evaluate(
        mteb_model(run), mocks.MockSTSTask(), cache=None, show_progress_bar=False
    )
    assert results.task_results[0].get_score() == pytest.approx(
        spearmanr(cosines, rows['score'])[0]
    )
