"""What makes a score another one: the user's choices and the data, and nothing else."""

from types import SimpleNamespace

import pytest

from cpt_jax.evals.inputs import CHOICES, fingerprints, weights_fingerprint
from cpt_jax.evals.suite import find_tasks

CHOSEN = {
    'split': 'test', 'k': 100, 'candidates': 1000, 'code_text': 'raw', 'symmetric_side': 'x', 'probe_protocol': 'lbfgs',
    'label_words': ['bad', 'good'], 'label_template': '{}', 'code_direction': 'text_to_code', 'index': 'exact', 'baselines': ['bm25'],
    'trec_runs': False,
}  # fmt: skip
FILES = {
    'retrieval/a': ['retrieval/a/corpus.jsonl', 'retrieval/a/queries.jsonl', 'retrieval/a/qrels/test.tsv'],
    'openqa/a': ['openqa/a/questions.jsonl', 'openqa/psgs_w100.tsv'],
    'codesearch/a': ['codesearch/a.jsonl', 'codesearch/a.codebase.jsonl'],
    'sts/STS13': ['senteval/STS/STS13-en-test/STS.gs.FNWN.txt'],
    'sts/STSBenchmark': ['senteval/STS/STSBenchmark/sts-test.csv'],
    'sts/SICK-R': ['senteval/SICK/SICK_test_annotated.txt'],
    'bias/a': ['sent_bias_seat/tests/a.jsonl'],
    'probe/MR': ['senteval/MR/rt-polarity.pos'],
    'knn/SST2': ['senteval/SST/binary/sentiment-test'],
    'zeroshot/SST2': ['senteval/SST/binary/sentiment-test'],
}


@pytest.fixture
def data_dir(tmp_path):
    for path in [path for paths in FILES.values() for path in paths]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f'content of {path}')
    return tmp_path


def prints(data_dir, **choices) -> dict[str, str]:
    return fingerprints([SimpleNamespace(name=name) for name in FILES], CHOSEN | choices, str(data_dir))


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_data_change_their_own_tasks_alone(data_dir):
    assert prints(data_dir) == prints(data_dir)
    assert len(set(prints(data_dir).values())) == len(FILES)
    for task, paths in FILES.items():
        for path in paths:
            before = prints(data_dir)
            (data_dir / path).write_text(f'something else of {task}')
            assert changed(before, prints(data_dir)) == {name for name, theirs in FILES.items() if path in theirs}


@pytest.mark.parametrize('choice', CHOSEN)
def test_a_choice_changes_the_tasks_that_know_it(data_dir, choice):
    kinds = {name.split('/')[0] for name in changed(prints(data_dir), prints(data_dir, **{choice: 'another'}))}
    assert kinds == {kind for kind, choices in CHOICES.items() if choice in choices}


def test_every_task_that_can_be_found_has_its_choices_known(data_dir):
    assert {name.split('/')[0] for name in find_tasks(str(data_dir))} == CHOICES.keys()
    assert fingerprints([SimpleNamespace(name='new/task')], CHOSEN, str(data_dir)) == {}  # such a task is always run


def test_weights_are_told_apart_by_what_is_in_their_files(tmp_path):
    (tmp_path / 'model' / '2_Dense').mkdir(parents=True)
    for path in ('model.safetensors', '2_Dense/model.safetensors'):
        (tmp_path / 'model' / path).write_text('numbers')
    before = weights_fingerprint(tmp_path / 'model')
    (tmp_path / 'model' / 'README.md').write_text('words')
    assert weights_fingerprint(tmp_path / 'model') == before
    (tmp_path / 'model' / '2_Dense' / 'model.safetensors').write_text('others')
    assert weights_fingerprint(tmp_path / 'model') != before


def test_weights_are_those_of_all_directories_of_a_model(tmp_path):
    for name in ('adapter', 'base'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.safetensors').write_text('numbers')
    before = weights_fingerprint(tmp_path / 'adapter', tmp_path / 'base')
    (tmp_path / 'base' / 'model.safetensors').write_text('others')
    assert weights_fingerprint(tmp_path / 'adapter', tmp_path / 'base') != before
