"""The plan depends on every file that its result depends on."""

import fsspec
import pytest

from cpt_jax.data.files import InputFile
from cpt_jax.prepare import plan as plans
from cpt_jax.prepare.inputs import digest_model, digest_states, find_source_files
from cpt_jax.prepare.plan import plan_preparation
from tests.prepare.helpers import make_config, write_texts


def fingerprint(config):
    return plan_preparation(config).fingerprint


def write_collection(folder):
    """Writes the files of a collection of BEIR."""
    (folder / 'qrels').mkdir(parents=True)
    (folder / 'qrels/train.tsv').write_text('query-id\tcorpus-id\tscore\nq\td\t1\n')
    (folder / 'qrels/test.tsv').write_text('query-id\tcorpus-id\tscore\nq\td\t1\n')
    (folder / 'corpus.jsonl').write_text('{"_id": "d", "text": "a document"}\n')
    (folder / 'queries.jsonl').write_text('{"_id": "q", "text": "a query"}\n')


def test_tokenizer_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    class Counter:
        fingerprint = 'first'

    monkeypatch.setattr(plans, 'load_counter', lambda path: Counter)
    monkeypatch.setattr('cpt_jax.prepare.neighbours.load_counter', lambda path: Counter)
    config = make_config(a={'path': str(write_texts(tmp_path, 1)), 'piece_tokens': 50})
    config['tokenizer'] = {'path': 'tokenizer.json'}
    before = fingerprint(config)
    Counter.fingerprint = 'second'
    assert fingerprint(config) != before
    config['sources']['a']['piece_tokens'] = 0
    assert fingerprint(config) == fingerprint(config)


def test_test_sets_are_part_of_the_fingerprint(tmp_path):
    write_collection(tmp_path / 'data/retrieval/scifact')
    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 1))})
    config['decontamination'] = {'data_dir': str(tmp_path / 'data')}
    before = fingerprint(config)
    (tmp_path / 'data/pairs').mkdir()
    (tmp_path / 'data/pairs/output').write_text('not a test set')
    assert fingerprint(config) == before
    (tmp_path / 'data/retrieval/scifact/queries.jsonl').write_text('{"_id": "q", "text": "new"}\n')
    assert fingerprint(config) != before


def test_model_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    model = tmp_path / 'model'
    model.mkdir()
    (model / 'config.json').write_text('{}')
    monkeypatch.setattr('cpt_jax.origin.resolve.resolve_model', lambda reference, flag: None)
    monkeypatch.setattr('cpt_jax.origin.pretrained.list_model_directories', lambda name: [model])
    before = digest_model(str(model))
    assert digest_model(str(model)) == before
    (model / 'model.safetensors').write_bytes(b'weights')
    assert digest_model(str(model)) != before


@pytest.mark.parametrize('path', ['in', 'in/a/qrels/train.tsv', 'in/*/qrels/*.tsv'])
def test_companions_are_part_of_the_fingerprint(tmp_path, path):
    write_collection(tmp_path / 'in/a')
    config = make_config(a={'reader': 'beir', 'path': str(tmp_path / path), 'pairs': 'fields'})
    before = plan_preparation(config)
    names = ('corpus.jsonl', 'queries.jsonl', 'qrels/train.tsv')
    assert before.size == sum((tmp_path / 'in/a' / name).stat().st_size for name in names)
    (tmp_path / 'in/a/corpus.jsonl').write_text('{"_id": "d", "text": "other document"}\n')
    assert fingerprint(config) != before.fingerprint


def test_companions_are_copied_from_a_bucket(tmp_path):
    write_collection(tmp_path / 'beir/a')
    tree = tmp_path / 'sources/package'
    tree.mkdir(parents=True)
    for name in ('LICENSE', 'package.json', 'a.js', 'notes.txt'):
        (tree / name).write_text(name)
    store = fsspec.filesystem('memory')
    try:
        store.put(str(tmp_path), '/bucket', recursive=True)
        found = find_source_files('a', 'memory://bucket/beir', 'beir', {})
        assert [file.name for file in found.files] == ['a/qrels/train.tsv']
        root = found.files[0].path.parents[1]
        assert (root / 'corpus.jsonl').is_file() and (root / 'queries.jsonl').is_file()
        found = find_source_files('a', 'memory://bucket/sources', 'sources', {})
        assert [file.name for file in found.files] == ['package/a.js']
        assert [file.path.name for file in found.companions] == ['LICENSE', 'package.json']
        assert all(file.path.is_file() for file in found.companions)
    finally:
        store.rm('/bucket', recursive=True)


def test_paths_of_the_plan_are_absolute(tmp_path, monkeypatch):
    write_texts(tmp_path / 'texts', 1)
    write_collection(tmp_path / 'data/retrieval/scifact')
    monkeypatch.chdir(tmp_path)
    config = make_config(a={'path': 'texts'})
    config['decontamination'] = {'data_dir': 'data'}
    plan = plan_preparation(config)
    assert plan.tasks[0].files[0].path == str(tmp_path / 'texts/0000.txt')
    assert plan.decontamination.data_dir == str(tmp_path / 'data')


def test_compressed_files_have_more_partitions(monkeypatch):
    monkeypatch.setattr(plans, '_NEAR_PARTITION_BYTES', 1000)
    for name, partitions in (('a.jsonl', 1), ('a.jsonl.zst', 4), ('a.parquet', 4)):
        task = plans.ShardTask('a', (plans.PlannedFile(name, name, 999),))
        assert plans.Preparation({}, {}, [task], 1, '').near_partitions == partitions


def test_a_file_that_cannot_be_read_does_not_end_the_plan(tmp_path):
    files = [InputFile(name, tmp_path / name) for name in ('a', 'gone')]
    (tmp_path / 'a').write_text('a')
    before = digest_states(files)
    assert digest_states(files) == before
    (tmp_path / 'a').write_text('bc')
    assert digest_states(files) != before
