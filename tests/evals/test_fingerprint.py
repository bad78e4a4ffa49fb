"""Fingerprints depend on the task's options and data, and on nothing else."""

from dataclasses import replace

import pytest

from cpt_jax.benchmark_data.code_pairs import compute_heldout_fingerprint
from cpt_jax.evals.registry import KINDS, find_option_fields, find_tasks, select_score_options
from cpt_jax.evals.store.embedding_cache import digest_json
from cpt_jax.search import faiss_index

FILES = {
    'retrieval/a': [
        'retrieval/a/corpus.jsonl',
        'retrieval/a/queries.jsonl',
        'retrieval/a/qrels/test.tsv',
    ],
    'openqa/a': ['openqa/a/questions.jsonl', 'openqa/psgs_w100.tsv'],
    'codesearch/a': ['codesearch/a.jsonl', 'codesearch/a.codebase.jsonl'],
    'sts/STS13': ['senteval/STS/STS13-en-test/STS.gs.FNWN.txt'],
    'sts/STSBenchmark': ['senteval/STS/STSBenchmark/sts-test.csv'],
    'sts/SICK-R': ['senteval/SICK/SICK_test_annotated.txt'],
    'bias/a': ['sent_bias_seat/tests/a.jsonl'],
    'probe/MR': ['senteval/MR/rt-polarity.pos'],
    'probe/SST2': ['senteval/SST/binary/sentiment-test'],
    'knn/SST2': ['senteval/SST/binary/sentiment-test'],
    'zeroshot/SST2': ['senteval/SST/binary/sentiment-test'],
}
# Fingerprints that earlier versions wrote to results.json and results.jsonl. If they changed, all
# scores of users would become invalid.
WITH_DEFAULTS = {
    'retrieval/a': '94d2a955132422c8515375b78af692aa',
    'openqa/a': '25e340d35037a4fb3fb7d2774108ed65',
    'codesearch/a': '16ee5365778555e16920bcf58cc3bdd0',
    'sts/STS13': '928b1eb4f4416d524ca861b6bcd1b2dd',
    'sts/STSBenchmark': '9a18b83eb51ea0e95ec3c13706617ab2',
    'sts/SICK-R': '2c124e628c5517011095218c1d25ff1b',
    'bias/a': '1d0a695c24e231872da28f60392cd13d',
    'probe/MR': '5eb56c5bd64f4e5c5a7ea4b6904e4616',
    'probe/SST2': '132cd60da9e872825cc9278c0908fa85',
    'knn/SST2': '963944cbac5edd0c91d18834defbf545',
    'zeroshot/SST2': '49a0502a25b0489dca9cd6a14f34cb14',
}
WITH_OPTIONS = {
    'retrieval/a': '8d5d98e7feac473712fb35d7aedcb8c3',
    'openqa/a': 'a9837eaa2a73009e1359d6a6a9ed9bd5',
    'sts/STS13': 'db2041df15a718c53d3fbfc19f6e855b',
    'zeroshot/SST2': '751622bea576e9fb9b5e33a0f7302a4d',
}
# Option -> a value other than its default.
OTHER = {
    'split': 'dev',
    'symmetric_side': 'y',
    'k': 50,
    'index': 'hnsw',
    'precision': 'int8',
    'rescore': 8,
    'search_memory': 1.0,
    'baselines': ['bm25'],
    'trec_runs': True,
    'unjudged': 'skip',
    'candidates': 100,
    'code_text': 'tokens',
    'code_direction': 'both',
    'probe_protocol': 'senteval',
    'label_words': ['good', 'bad'],
    'label_template': '{}',
}


@pytest.fixture
def data_dir(tmp_path):
    for path in [path for paths in FILES.values() for path in paths]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f'content of {path}')
    return tmp_path


def make_fingerprints(data_dir, **options) -> dict[str, str]:
    """Returns the fingerprints of all tasks except the one without files, which takes seconds."""
    tasks = find_tasks(str(data_dir), **options)
    del tasks['codesearch/python_source']
    return {name: task.fingerprint() for name, task in tasks.items()}


def find_changed(before: dict, after: dict) -> set[str]:
    assert before.keys() >= after.keys() and after
    return {name for name in after if before[name] != after[name]}


def test_fingerprints_match_earlier_versions(data_dir):
    assert make_fingerprints(data_dir) == WITH_DEFAULTS
    options = {'split': 'test', 'label_words': ['bad', 'good'], 'label_template': '{}'}
    found = make_fingerprints(data_dir, baselines=['bm25'], **options)
    assert {name: found[name] for name in WITH_OPTIONS} == WITH_OPTIONS


def test_python_source_depends_on_the_installed_packages():
    """The fingerprint of its data takes half a minute, so it is replaced here."""
    task = find_tasks(None)['codesearch/python_source']
    assert task.fingerprint_data is compute_heldout_fingerprint
    options = {'candidates': 1000, 'code_direction': 'text_to_code', 'code_text': 'raw'}
    found = replace(task, fingerprint_data=lambda: 'packages').fingerprint()
    assert found == digest_json(['codesearch/python_source', options, 'packages'])


def test_data_change_only_the_fingerprints_of_their_tasks(data_dir):
    assert make_fingerprints(data_dir) == make_fingerprints(data_dir)
    assert len(set(make_fingerprints(data_dir).values())) == len(FILES)
    for task, paths in FILES.items():
        for path in paths:
            before = make_fingerprints(data_dir)
            (data_dir / path).write_text(f'something else of {task}')
            assert find_changed(before, make_fingerprints(data_dir)) == {
                name for name, theirs in FILES.items() if path in theirs
            }


def test_every_option_is_tested():
    assert OTHER.keys() == find_option_fields().keys()


@pytest.mark.parametrize('option', OTHER)
def test_option_changes_only_the_fingerprints_of_its_tasks(data_dir, option, monkeypatch):
    # A FAISS index would be refused if FAISS is not installed.
    monkeypatch.setattr(faiss_index, 'find_spec', lambda name: name)
    (data_dir / 'senteval/STS/STSBenchmark/sts-dev.csv').touch()
    (data_dir / 'senteval/SICK/SICK_trial.txt').touch()
    found = find_changed(
        make_fingerprints(data_dir), make_fingerprints(data_dir, **{option: OTHER[option]})
    )
    owners = {kind.name for kind in KINDS if option in kind.options.__dataclass_fields__}
    # The memory of the search does not change its results, and unjudged queries have no score.
    expected = set() if option in ('search_memory', 'unjudged') else owners
    assert owners and {name.split('/')[0] for name in found} == expected


def test_model_scores_do_not_depend_on_baselines_and_trec_runs():
    assert OTHER.keys() - select_score_options(OTHER).keys() == {'baselines', 'trec_runs'}
