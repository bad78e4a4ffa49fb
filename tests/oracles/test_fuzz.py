"""Damaged model directories have the vectors of transformers, or are refused."""

from random import Random

import numpy as np
import pytest

from fuzz import model_directories, transformers_vectors
from fuzz.model_directories import CONFIGS, TEXTS, fuzz_models, make_adapter, make_directory
from fuzz.outcome import ERROR, OK, SILENT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))


def test_undamaged_directories_are_read_by_both(tmp_path):
    assert transformers_vectors.is_installed()
    for kind in CONFIGS:
        make_directory(kind, tmp_path / kind)
    make_adapter(tmp_path / 'llama', tmp_path / 'lora')
    for kind in (*CONFIGS, 'lora'):
        base = tmp_path / ('llama' if kind == 'lora' else kind)
        expected = transformers_vectors.embed_with_transformers(tmp_path / kind, base, TEXTS)
        found = model_directories._embed(tmp_path / kind)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_damaged_directories_are_read_alike_or_refused(tmp_path):
    outcomes = list(fuzz_models(Random(0), tmp_path, 40))
    assert [outcome for outcome in outcomes if outcome.detail] == []
    assert {outcome.what for outcome in outcomes} == {OK, ERROR}


def test_other_vectors_are_found(tmp_path, monkeypatch):
    expected = np.eye(8, dtype=np.float32)[[0] * len(TEXTS)]
    monkeypatch.setattr(model_directories, 'embed_with_transformers', lambda *arguments: expected)
    (outcome, *_) = [
        outcome for outcome in fuzz_models(Random(1), tmp_path, 10) if outcome.what != ERROR
    ]
    assert outcome.what == SILENT and 'from transformers' in outcome.detail
