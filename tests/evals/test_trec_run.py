import numpy as np
import pytest
import pytrec_eval
from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.baselines import random_embed
from cpt_jax.evals.retrieval import Retrieval
from cpt_jax.evals.searcher import Searcher
from cpt_jax.evals.trec_run import read_run, write_run
from tests.evals.test_retrieval import small_vectors, table_embed, write_collection


def test_the_file_of_a_task_gives_its_metrics(tmp_path):
    """Graded judgements, many ties, ids such as '007', k larger than the corpus, and a query without an answer in the run."""
    rng = np.random.default_rng(0)
    ids, queries = [f'{i:03d}' for i in range(40)], ['007', '7', 'q']
    qrels = {q: {d: int(g) for d, g in zip(rng.choice(ids, 6, False), [1, 2, 3, 0, 1, 1], strict=True)} for q in queries}
    qrels['7'] = {'not in the corpus': 2}
    folder = write_collection(tmp_path / 'c', ids, queries, qrels)
    task = Retrieval('retrieval/c', folder, k=100, searcher=Searcher(baselines=()), runs=epath.Path(tmp_path / 'runs'))
    result = task.run(table_embed(small_vectors(ids, 'd', 0) | small_vectors(queries, 'q', 1)))
    path = epath.Path(tmp_path / 'runs/retrieval/c.trec')
    with path.open() as file:
        run = pytrec_eval.parse_run(file)
    assert run == read_run(path) and sorted(map(len, run.values())) == [39, 40, 40]  # 007 is a document too
    found = pytrec_eval.RelevanceEvaluator(qrels, {'ndcg_cut.10', 'recall.100', 'recip_rank'}).evaluate(run)
    assert result.metrics['ndcg@10'] == pytest.approx(np.mean([row['ndcg_cut_10'] for row in found.values()]), rel=1e-12)
    assert result.metrics['recall@100'] == pytest.approx(np.mean([row['recall_100'] for row in found.values()]), rel=1e-12)
    assert path.read_text().splitlines()[0].split()[1::2] == ['Q0', '1', 'cpt_jax']
    assert not [*path.parent.glob('.*')]


def test_scores_come_back_as_the_same_float32(tmp_path):
    scores = random_embed(0)(['a'], 'x')[0]
    write_run(epath.Path(tmp_path / 'a.trec'), {'q': {str(i): float(score) for i, score in enumerate(scores)}})
    assert np.array_equal(np.float32([*read_run(epath.Path(tmp_path / 'a.trec'))['q'].values()]), scores)


def test_what_is_no_run_file(tmp_path):
    path = epath.Path(tmp_path / 'a.trec')
    with pytest.raises(UserError, match="a.trec: the id 'a b' is empty or holds a space"):
        write_run(path, {'q': {'a b': 1.0}})
    assert not [*tmp_path.iterdir()]
    path.write_text('q Q0 d 1 0.5 tag\nq Q0 d 0.5 tag\n')
    with pytest.raises(UserError, match=r'a.trec:2: query, Q0'):
        read_run(path)
