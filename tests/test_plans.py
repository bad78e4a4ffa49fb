"""The README's tables of plans have a slice for every config, on which it fits."""

from pathlib import Path

import pytest

from benchmarks.plans import EMBEDDING_HEAD, EMBEDDINGS, HEAD, PLANS
from cpt_jax.plan.topology import check_topology
from tests.test_configs import CONFIGS

ROOT = Path(__file__).parents[1]


def rows_of_the_readme(head: tuple[str, ...]) -> list[list[str]]:
    lines = (ROOT / 'README.md').read_text().splitlines()
    first = lines.index(f'| {" | ".join(head)} |') + 2
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in lines[first : lines.index('', first)]
    ]


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_has_a_slice_on_which_it_fits(name):
    (row, *_) = [
        row
        for head in (HEAD, EMBEDDING_HEAD)
        for row in rows_of_the_readme(head)
        if row[0] == f'`{name}`'
    ]
    used, _, limit = row[4].removesuffix(' GiB').partition(' of ')
    assert float(used) < float(limit)


def test_the_tables_have_the_plans_that_the_program_makes():
    trained, embedding = (
        [(row[0].split('`')[1], row[1]) for row in rows_of_the_readme(head)]
        for head in (HEAD, EMBEDDING_HEAD)
    )
    assert trained == [
        (name, topology if slices == 1 else f'{slices} x {topology}')
        for name, topology, slices, _ in PLANS
    ]
    assert embedding == [(name, topology) for name, topology, _ in EMBEDDINGS]
    for _, topology, *_ in [*PLANS, *EMBEDDINGS]:
        check_topology(topology)
