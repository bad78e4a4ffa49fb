"""Configs with values of other types and absurd sizes, and damaged records of a run."""

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from fuzz.outcome import Outcome, choose_value, damage_bytes, judge

TEXTS = 'open', 'read', 'file', 'path', 'list', 'sort', 'value', 'index', 'error', 'batch'


def fuzz_configs(random: Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Yields the outcome of each of `count` configs with a random value.

    A config that is accepted must describe a run: its state and its schedule can be made.
    """
    import jax
    import numpy as np

    from cpt_jax.data.mixture import get_source_arguments
    from cpt_jax.model.config import EncoderConfig
    from cpt_jax.runs.config import flatten
    from cpt_jax.training.setup import set_up

    config = make_config(random, folder)
    keys = [
        *dict(flatten(config)), 'data', 'data.sources', 'data.sources.pairs', 'model', 'seed',
        *(f'data.sources.pairs.{name}' for name in get_source_arguments('jsonl')),
        *(f'model.{name}' for name in inspect.signature(EncoderConfig).parameters),
    ]  # fmt: skip
    for number in range(count):
        key, value = random.choice(keys), choose_value(random)
        changed = copy.deepcopy(config)
        *parents, name = key.split('.')
        section: Any = changed
        for parent in parents:
            section = section[parent]
        section[name] = value

        def read(changed=changed) -> str:
            run = set_up(changed, folder / 'run')
            with jax.set_mesh(run.mesh):
                run.make_abstract_state()
            rates = np.asarray(run.schedule(np.arange(3)))
            return '' if np.isfinite(rates).all() else f'learning rates {rates}'

        yield judge('config', f'config {number}: {key}={value!r:.60}', read)


def make_config(random: Random, folder: Path) -> dict[str, Any]:
    """Returns a valid config on a few pairs, with a tokenizer that is already trained."""
    from cpt_jax.runs.config_file import load_config
    from cpt_jax.training.setup import set_up

    rows = [
        {'x': ' '.join(random.choices(TEXTS, k=5)), 'y': ' '.join(random.choices(TEXTS, k=9))}
        for _ in range(60)
    ]
    data = folder / 'pairs.jsonl'
    data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    config = load_config('configs/quickstart.py')
    pairs = {'kind': 'jsonl', 'weight': 1.0, 'path': str(data), 'holdout': 0.2}
    config['data'] |= {'sources': {'pairs': pairs}, 'row_length': 64}
    config['train'] |= {'batch_pairs': 8, 'steps': 9}
    config['optimizer'] |= {'warmup_steps': 2}
    config['tokenizer'] |= {'vocab_size': 300, 'path': ''}
    set_up(config, folder / 'run').tokenizer.save(folder / 'tokenizer')
    config['tokenizer']['path'] = str(folder / 'tokenizer')
    return config


def fuzz_records(random: Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Yields the outcome of each of `count` damaged records of a run."""
    readers = {
        'metrics.jsonl': _read_metrics,
        'results.jsonl': _read_history,
        'results.json': _read_results,
        'config.json': _read_config,
    }
    contents = {name: _make_record(name) for name in readers}
    for number in range(count):
        name = random.choice([*readers])
        data = contents[name]
        if name.endswith('.json') or random.random() < 0.5:
            data = _change_value(random, data)
        for _ in range(random.choice([0, 1, 1, 2])):
            data = damage_bytes(random, data)
        (folder / name).write_bytes(data)
        yield judge(
            'record',
            f'record {number}, {name}: {data[:300]!r}',
            lambda name=name, data=data: readers[name](folder / name, data),
        )


def _make_record(name: str) -> bytes:
    if name == 'metrics.jsonl':
        rows: Any = [
            {'step': step, 'loss': 1 / step, 'seconds': step * 2.5} for step in range(1, 9)
        ]
    elif name == 'results.jsonl':
        rows = [
            {'step': step, 'saved': f'2026-01-0{step}', 'task': 'sts/a', 'fingerprint': 'f',
             'main_score': 0.5, 'main_metric': 'spearman', 'metrics': {'spearman': 0.5}, 'n': 7,
             'seconds': 1.5, 'time': '2026'}
            for step in range(1, 5)
        ]  # fmt: skip
    elif name == 'results.json':
        row = {'main_score': 0.5, 'metrics': {'spearman': 0.5}, 'n': 7, 'counted': 'pairs',
               'settings': {'main_metric': 'spearman'}, 'baselines': {},
               'fingerprint': 'f'}  # fmt: skip
        rows = [{'model': 'm', 'settings': {}, 'tasks': {'sts/a': row}}]
    else:
        rows = [{'train': {'steps': 9}, 'seed': 0}]
    return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def _change_value(random: Random, data: bytes) -> bytes:
    """Replaces a value in one line, or the whole line."""
    lines = data.splitlines(keepends=True)
    index = random.randrange(len(lines))
    row = json.loads(lines[index])
    node = row
    key = random.choice([*node])
    while isinstance(node[key], Mapping) and node[key] and random.random() < 0.7:
        node = node[key]
        key = random.choice([*node])
    node[key] = choose_value(random)
    content = row if random.random() < 0.9 else choose_value(random)
    lines[index] = json.dumps(content).encode() + b'\n'
    return b''.join(lines)


def _read_metrics(path: Path, data: bytes) -> str:
    """Compares the rows that a resumed run and a report read with those in the file."""
    from etils import epath

    from cpt_jax.evals.report.curves import read_metrics
    from cpt_jax.training.recording import drop_rows_after

    expected = [row for row in map(_parse_row, data.split(b'\n')) if row is not None]
    curves = read_metrics(epath.Path(path))
    losses = {
        float(row['step']): float(row['loss']) for row in expected if _is_number(row.get('loss'))
    }
    found = {}
    if 'loss' in curves:
        steps_N, values_N = curves['loss']
        pairs = zip(steps_N.tolist(), values_N.tolist(), strict=True)
        found = {step: value for step, value in pairs if value == value}
    if losses != found:
        return f'losses {found}, expected {losses}'
    kept = drop_rows_after(path, 5)
    steps = [row['step'] for row in expected if row['step'] <= 5]
    if [row['step'] for row in kept] != steps:
        return f'rows of steps {[row["step"] for row in kept]}, expected {steps}'
    return ''


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    step = row.get('step')
    is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63
    return row if is_step else None


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return value == value
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _read_history(path: Path, data: bytes) -> str:
    from cpt_jax.evals.store.history import find_best_checkpoints, format_history, read_rows

    rows = read_rows(path)
    format_history(rows)
    find_best_checkpoints(rows)
    return '' if len(rows) == data.count(b'\n') else f'{len(rows)} rows'


def _read_results(path: Path, data: bytes) -> str:
    from etils import epath

    from cpt_jax.evals.report.page import render_page
    from cpt_jax.evals.store.results import ResultsFile, format_table, read_earlier_json

    del data
    results = ResultsFile(epath.Path(path), 'm', {})
    results.describe_replaced_results()
    content = results.load()
    format_table(content)
    render_page(read_earlier_json(epath.Path(path)), {}, None, [], [])
    return ''


def _read_config(path: Path, data: bytes) -> str:
    from cpt_jax.runs.config import check_workdir

    check_workdir(path.parent)
    content = json.loads(data)
    return '' if isinstance(content, dict) and 'train' in content else 'is taken for a config'
