"""Run files give trec_eval the rankings that a task was scored on."""

import numpy as np
import pytest
import pytrec_eval
from etils import epath

from cpt_jax.evals.tasks.retrieval import Retrieval, RetrievalOptions
from cpt_jax.runtime.errors import UserError
from cpt_jax.search.bm25 import make_random_embed
from cpt_jax.search.trec_run import write_run
from tests.evals.tasks.test_retrieval import make_small_vectors, make_table_embed, write_collection


def read_run(path):
    """Returns scores by query and document, parsed by the definition of a run file."""
    run = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, {})[document] = float(score)
    return run


def test_run_file_gives_the_metrics_of_the_task(tmp_path):
    """With graded judgements, many ties, ids such as '007', k larger than the corpus, and a query
    whose relevant document is not in the corpus.
    """
    rng = np.random.default_rng(0)
    ids, queries = [f'{i:03d}' for i in range(40)], ['007', '7', 'q']
    qrels = {
        q: {d: int(g) for d, g in zip(rng.choice(ids, 6, False), [1, 2, 3, 0, 1, 1], strict=True)}
        for q in queries
    }
    qrels['7'] = {'not in the corpus': 2}
    folder = write_collection(tmp_path / 'c', ids, queries, qrels)
    task = Retrieval(
        'retrieval/c',
        folder,
        RetrievalOptions(k=100, baselines=()),
        epath.Path(tmp_path / 'runs'),
    )
    result = task.run(
        make_table_embed(make_small_vectors(ids, 'd', 0) | make_small_vectors(queries, 'q', 1))
    )
    path = epath.Path(tmp_path / 'runs/retrieval/c.trec')
    with path.open() as file:
        run = pytrec_eval.parse_run(file)
    # The query 007 is also a document, which is left out of its own results.
    assert run == read_run(path) and sorted(map(len, run.values())) == [39, 40, 40]
    found = pytrec_eval.RelevanceEvaluator(
        qrels, {'ndcg_cut.10', 'recall.100', 'recip_rank'}
    ).evaluate(run)
    assert result.metrics['ndcg@10'] == pytest.approx(
        np.mean([row['ndcg_cut_10'] for row in found.values()]), rel=1e-12
    )
    assert result.metrics['recall@100'] == pytest.approx(
        np.mean([row['recall_100'] for row in found.values()]), rel=1e-12
    )
    assert path.read_text().splitlines()[0].split()[1::2] == ['Q0', '1', 'cpt_jax']
    assert not [*path.parent.glob('.*')]


def test_scores_are_read_back_as_the_same_float32(tmp_path):
    scores = make_random_embed(0)(['a'], 'x')[0]
    write_run(
        epath.Path(tmp_path / 'a.trec'),
        {'q': {str(i): float(score) for i, score in enumerate(scores)}},
    )
    assert np.array_equal(
        np.float32([*read_run(epath.Path(tmp_path / 'a.trec'))['q'].values()]), scores
    )


def test_run_file_is_written_to_a_bucket(gs_bucket):
    path = epath.Path(f'{gs_bucket}/runs/a.trec')
    write_run(path, {'q': {'d': 0.5}})
    assert path.read_text() == 'q Q0 d 1 0.5 cpt_jax\n'


def test_id_with_a_space_is_an_error(tmp_path):
    path = epath.Path(tmp_path / 'a.trec')
    with pytest.raises(UserError, match="a.trec: the id 'a b' is empty or contains a space"):
        write_run(path, {'q': {'a b': 1.0}})
    assert not [*tmp_path.iterdir()]
