"""Tests that the tables in docs/planning.md match benchmarks/plans.py and fit every config."""

from pathlib import Path

import pytest

from benchmarks.plans import EMBEDDING_HEAD, EMBEDDINGS, HEAD, PLANS
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
