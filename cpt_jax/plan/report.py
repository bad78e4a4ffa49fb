"""What launch/plan.py prints and writes."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cpt_jax.plan.embedding import AnyPlan
from cpt_jax.plan.planning import Plan
from cpt_jax.plan.sweep import flags_of, sweep, sweep_table
from cpt_jax.plan.table import show
from cpt_jax.plan.topology import check_topology
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically


def plan_all(
    make: Callable[[str, Callable[[], None]], AnyPlan],
    topologies: Sequence[str],
    json_path: Path | None,
) -> None:
    """Plans a config on each topology.

    Args:
      make: the plan on a topology (`make_plan`, `make_embedding_plan`); its second argument is
        called when the compiler begins.
      topologies: such as v5p:4x4x4.
      json_path: where the figures go too: an object, or a list where there are several topologies.

    Raises:
      UserError: see those; or the file cannot be written.
    """
    _check(topologies, json_path)
    plans: list[AnyPlan] = []
    for topology in topologies:
        plans.append(
            make(topology, partial(print, f'{topology}: compiling, up to minutes', flush=True))
        )
        print(f'\n{show(plans[-1])}\n', flush=True)
        _write(json_path, plans, as_list=len(topologies) > 1)


def sweep_all(
    config: Mapping[str, Any],
    topologies: Sequence[str],
    slices: int,
    limit: int,
    json_path: Path | None,
) -> None:
    """Sweeps each topology; see `sweep`.

    Args:
      config: plain values.
      topologies: such as v5p:4x4x4.
      slices: of each.
      limit: programs to compile for each.
      json_path: where the figures of all of them go too, as a list.

    Raises:
      UserError: see `sweep`; or the file cannot be written.
    """
    _check(topologies, json_path)
    everything: list[Plan] = []

    def keep(plan: Plan) -> None:
        everything.append(plan)
        _write(json_path, everything, as_list=True)

    for topology in topologies:
        plans, search = sweep(config, topology, slices, limit, keep)
        lines = ['', *(f'  {line}' for line in sweep_table(plans)), '']
        if search.left:
            lines += [
                f'  {search.left} candidates were not tried: --sweep_limit=N takes more; '
                f'{search.dropped} had no chance any more'
            ]
        if plans[0].fits:
            lines += [f'  fastest that fits: {flags_of(plans[0])}', '', show(plans[0])]
        else:
            lines += ['  none of these fits: take more chips']
        print('\n'.join(lines) + '\n', flush=True)


def _check(topologies: Sequence[str], json_path: Path | None) -> None:
    """Before minutes of compiling."""
    for topology in topologies:
        check_topology(topology)
    if json_path and not json_path.absolute().parent.is_dir():
        raise UserError(f'--json {json_path}: no such folder {json_path.absolute().parent}')


def _write(path: Path | None, plans: Sequence[AnyPlan], as_list: bool) -> None:
    if path:
        found = [dataclasses.asdict(plan) for plan in plans]
        write_atomically(path, json.dumps(found if as_list else found[0], indent=2) + '\n')
