"""Models and benchmark data in a bucket, here fsspec's file system in memory."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cpt_jax.embed.load import load_embedder
from cpt_jax.evals.registry import fetch_data_dir, find_tasks
from cpt_jax.model.adapters.peft import find_base_directory
from cpt_jax.origin.frozen_base import describe_base, open_checked_base
from cpt_jax.origin.pretrained import find_directory, list_model_directories
from cpt_jax.origin.resolve import resolve_model, resolve_origin
from cpt_jax.origin.weights_fingerprint import fingerprint_weights
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.cache import get_cache_folder
from tests.programs import ROOT

OLD_RUNS = ROOT / 'tests' / 'fixtures' / 'old_runs'


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """URL of a store that holds the models and data of the old runs; the cache is empty."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))
    store = fsspec.filesystem('memory')
    for folder in ('bert_model', 'llama_model', 'data', 'scratch/tokenizer'):
        store.put(str(OLD_RUNS / folder), f'/bucket/{folder}', recursive=True)
    store.pipe('/bucket/bert_model/onnx/model.onnx', b'the same weights in another format')
    find_directory.cache_clear()
    yield 'memory://bucket'
    find_directory.cache_clear()
    store.store.clear()
    store.pseudo_dirs[:] = ['']


def test_pretrained_model_is_that_of_the_local_directory(bucket):
    local = resolve_model(str(OLD_RUNS / 'bert_model'), '--model')
    found = resolve_model(f'{bucket}/bert_model', '--model')
    assert found.directory.name == 'bert_model' and get_cache_folder() in found.directory.parents
    assert (found.reference, found.config) == (f'{bucket}/bert_model', local.config)
    assert not [*get_cache_folder().rglob('*.onnx')]
    assert fingerprint_weights(
        *list_model_directories(f'{bucket}/bert_model')
    ) == fingerprint_weights(OLD_RUNS / 'bert_model')
    texts = ['Low light crosses more air.', 'Bees remember landmarks.']
    np.testing.assert_array_equal(
        load_embedder(f'{bucket}/bert_model')(texts, 'y'),
        load_embedder(str(OLD_RUNS / 'bert_model'))(texts, 'y'),
    )


def test_base_of_a_lora_run_is_stored_by_its_url(bucket):
    """The local copy has another path on each machine."""
    origin = resolve_origin(f'{bucket}/llama_model')
    base = describe_base(origin)
    assert base.path == f'{bucket}/llama_model'
    local = describe_base(resolve_origin(str(OLD_RUNS / 'llama_model')))
    assert base.fingerprint == local.fingerprint
    assert open_checked_base(base, 'run').directory == origin.directory


def test_base_of_a_peft_adapter_may_be_in_a_bucket(bucket, tmp_path):
    config = {
        'peft_type': 'LORA',
        'base_model_name_or_path': f'{bucket}/llama_model',
        'lora_alpha': 8,
    }
    (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
    base = find_base_directory(tmp_path)
    expected = (OLD_RUNS / 'llama_model' / 'config.json').read_bytes()
    assert base.name == 'llama_model' and (base / 'config.json').read_bytes() == expected


def test_data_of_the_selected_kinds_are_copied(bucket):
    local = find_tasks(str(OLD_RUNS / 'data'))
    folder = fetch_data_dir(f'{bucket}/data', ['retrieval/*'])
    assert sorted(path.name for path in Path(folder).iterdir()) == ['retrieval']
    folder = fetch_data_dir(f'{bucket}/data', ['suite/sts', 'codesearch/python_source'])
    assert sorted(path.name for path in Path(folder).iterdir()) == ['senteval']
    found = find_tasks(fetch_data_dir(f'{bucket}/data', ['*']))
    assert found.keys() == local.keys()
    for name in ('retrieval/tiny', 'sts/STSBenchmark'):
        assert found[name].fingerprint() == local[name].fingerprint()


def test_missing_model_and_data_are_one_line(bucket):
    with pytest.raises(UserError, match='--data_dir memory://bucket/none: no such file, folder'):
        fetch_data_dir(f'{bucket}/none', ['*'])
    with pytest.raises(UserError, match='^--model '):
        resolve_model(f'{bucket}/none', '--model')
