"""A few seconds of benchmarks/faults.py: damaged inputs are read as expected or refused."""

import json
from random import Random

import pytest

from benchmarks.faults import KINDS, count_outcomes, write_counts
from cpt_jax.data import csv_lines, rows
from cpt_jax.data.sources import jsonl
from fuzz.outcome import ERROR, OK, SILENT, TRACEBACK, judge
from fuzz.rows import fuzz_csv, fuzz_json_lines

COUNTS = {'jsonl': 150, 'csv': 200, 'beir': 80, 'model': 40, 'config': 80, 'record': 120}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder: the index of a file is found by its name, size and time."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.mark.parametrize('kind', KINDS)
def test_damaged_inputs_are_read_or_refused(kind, tmp_path):
    fuzz, _ = KINDS[kind]
    options = {'embed_changed': False} if kind == 'model' else {}
    outcomes = list(fuzz(Random(kind), tmp_path, COUNTS[kind], **options))
    assert len(outcomes) == COUNTS[kind]
    assert [outcome for outcome in outcomes if outcome.detail] == []
    assert {outcome.what for outcome in outcomes} == {OK, ERROR}


def test_lost_rows_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_lines, '_count_lines_of_row', lambda peek, form: 1)
    outcomes = fuzz_csv(Random(0), tmp_path, 100)
    assert any(outcome.what == SILENT for outcome in outcomes)


def test_changed_texts_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, '_is_blank', lambda value: value == '')
    outcomes = fuzz_json_lines(Random(0), tmp_path, 100)
    assert any(outcome.what == SILENT for outcome in outcomes)


def test_tracebacks_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, 'get_split_key', lambda *arguments: 1 / 0)
    (outcome,) = fuzz_json_lines(Random(0), tmp_path, 1)
    assert outcome.what == TRACEBACK and 'ZeroDivisionError at test_fuzz.py' in outcome.detail


def test_counts_are_added_to_those_of_other_parts(tmp_path):
    outcomes = [judge('csv', 'a', lambda: ''), judge('csv', 'b', lambda: 'differs')]
    path = tmp_path / 'faults.json'
    path.write_text('{"kills": 3}')
    write_counts(path, count_outcomes(outcomes))
    written = json.loads(path.read_text())
    assert {key: written[key] for key in ('kills', 'inputs', 'tracebacks', 'silent')} == {
        'kills': 3, 'inputs': 2, 'tracebacks': 0, 'silent': 1,
    }  # fmt: skip
    assert written['kinds']['csv'] == {'inputs': 2, OK: 1, ERROR: 0, 'tracebacks': 0, SILENT: 1}
