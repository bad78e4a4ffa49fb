"""Tests that the tables in docs/planning.md match benchmarks/plans.py and fit every config."""

from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import plans
from benchmarks.plans import (
    EMBEDDING_HEAD,
    EMBEDDINGS,
    HEAD,
    PLANS,
    Case,
    compute_code_digest,
    format_row,
    list_cases,
    make_cells,
    make_rows,
    replace_rows,
)
from cpt_jax.plan.topology import find_topology_chip
from tests.test_configs import CONFIGS

ROOT = Path(__file__).parents[1]


def read_table(head: tuple[str, ...]) -> list[list[str]]:
    """Returns the cells of each row of the table in docs/planning.md with this head."""
    lines = (ROOT / 'docs' / 'planning.md').read_text().splitlines()
    first = lines.index(f'| {" | ".join(head)} |') + 2
    rows = lines[first : lines.index('', first)]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


# The argument of configs/finetune.py decides about its size.
@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith('finetune:')])
def test_every_config_has_a_slice_on_which_it_fits(name):
    rows = [*read_table(HEAD), *read_table(EMBEDDING_HEAD)]
    row = next(row for row in rows if row[0] == f'`{name}`')
    used, _, limit = row[4].removesuffix(' GiB').partition(' of ')
    assert float(used) < float(limit)


def test_tables_have_the_plans_of_the_benchmark():
    training = [(row[0].split('`')[1], row[1]) for row in read_table(HEAD)]
    assert training == [
        (name, topology if slices == 1 else f'{slices} x {topology}')
        for name, topology, slices, _ in PLANS
    ]
    embedding = [(row[0].split('`')[1], row[1]) for row in read_table(EMBEDDING_HEAD)]
    assert embedding == [(name, topology) for name, topology, _ in EMBEDDINGS]


def test_all_topologies_are_offered():
    for _, topology, *_ in [*PLANS, *EMBEDDINGS]:
        find_topology_chip(topology)


def make_row(case: Case, **changes) -> dict:
    """Returns a row as `compile_case` does, with round numbers and nothing compiled."""
    return {
        'config': case.config, 'topology': case.topology, 'slices': case.slices,
        'changes': case.changes, 'fsdp': case.fsdp, 'chips': 4, 'mesh': {'data': 4, 'fsdp': 1},
        'hbm_bytes_per_chip': 2**30, 'hbm_limit_bytes': 2**34, 'compute_seconds': 3.0,
        'memory_seconds': 2.0, 'network_seconds': 1.0, 'lower_bound_seconds': 3.0,
        'forecast_seconds': 4.0, 'mfu_bound': 0.8, 'mfu_forecast': 0.6, 'compile_seconds': 600.0,
        'compiled_flops_per_step': 5, 'model_flops_per_step': 4, 'texts_per_step': 8000,
        'jax': version('jax'), 'libtpu': version('libtpu'), 'code': compute_code_digest(),
    } | changes  # fmt: skip


def test_a_killed_run_goes_on_with_the_rows_that_it_lacks(tmp_path, capsys):
    path = tmp_path / 'plans.json'
    cases = [*list_cases(['cpt_s'])[:3], *list_cases(['prompteol:opt-13b'])]
    compiled = []

    def compile_until_killed(case: Case) -> dict:
        if len(compiled) == 2:
            raise KeyboardInterrupt
        compiled.append(case)
        return make_row(case)

    with pytest.raises(KeyboardInterrupt):
        make_rows(cases, path, compile_until_killed)
    compiled_later = []

    def compile_rest(case: Case) -> dict:
        compiled_later.append(case)
        return make_row(case)

    rows = make_rows(cases, path, compile_rest)
    assert compiled == cases[:2] and compiled_later == cases[2:]
    assert [row['topology'] for row in rows] == [case.topology for case in cases]
    # Each row is reported once a run, in one line.
    reported = capsys.readouterr().out.splitlines()
    assert len(reported) == 2 + len(cases) and reported[-1] == '`prompteol:opt-13b` v5e:2x2 2,000'
    # Another libtpu may compile another program, and so may other code.
    assert cases[0].is_case_of(make_row(cases[0]))
    assert not cases[0].is_case_of(make_row(cases[0], libtpu='0.0.1'))
    assert not cases[0].is_case_of(make_row(cases[0], code='other'))
    old = make_row(cases[0])  # as the first version of the benchmark stored it
    assert not cases[0].is_case_of({key: old[key] for key in old if key not in ('fsdp', 'code')})


def test_the_digest_of_the_code_changes_with_the_package_and_the_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, 'ROOT', tmp_path)
    digests = set()
    for name in ('docs/planning.md', 'cpt_jax/plan/forecast.py', 'configs/base.py'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('text')
        digests.add(compute_code_digest.__wrapped__())
    (tmp_path / 'docs/planning.md').write_text('other')
    digests.add(compute_code_digest.__wrapped__())
    assert len(digests) == 3


def test_rows_have_the_forecast_and_replace_those_of_a_document():
    training, embedding = list_cases(['cpt_s'])[1], list_cases(['prompteol:opt-13b'])[0]
    cells = make_cells(make_row(training))
    assert dict(zip(HEAD, cells, strict=True)) == {
        'config': '`cpt_s`, `encode_chunks=8`', 'slice': 'v5e:4x4', 'chips': '4', 'mesh': 'data 4',
        'memory a chip': '1.0 of 16.0 GiB', 'step at least': '3 s', 'forecast': '4 s',
        'limited by': 'arithmetic', 'program / model': '1.25', 'MFU at most': '80%',
        'MFU forecast': '60%', "MaxText's MFU": '56 to 67%', 'compiled in': '10 min',
    }  # fmt: skip
    speeds = dict(zip(EMBEDDING_HEAD, make_cells(make_row(embedding)), strict=True))
    assert (speeds['texts a second at most'], speeds['forecast']) == ('2,667', '2,000')
    missing = make_cells(make_row(training, lower_bound_seconds=None))
    assert len(missing) == len(HEAD) and missing[4].endswith('does not fit')

    document = ['Text', format_row(HEAD), format_row(['---'] * len(HEAD))]
    other = format_row(['`cpt_s`', 'v5e:8x8', *['?'] * 11])
    old = format_row(['`cpt_s`, `encode_chunks=8`', 'v5e:4x4', *['?'] * 11])
    text = '\n'.join([*document, other, old, '', 'End']) + '\n'
    expected = '\n'.join([*document, other, format_row(cells), '', 'End']) + '\n'
    assert replace_rows(text, HEAD, [cells]) == expected
    # A table may be the last part of a document.
    end = len('\nEnd\n')
    assert replace_rows(text[:-end], HEAD, [cells]) == expected[:-end]
