"""The output of launch/plan.py: printed tables and a JSON file."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cpt_jax.plan.embedding import AnyPlan
from cpt_jax.plan.planning import Plan
from cpt_jax.plan.sweep import format_flags, format_sweep_table, sweep
from cpt_jax.plan.table import format_plan
from cpt_jax.plan.topology import find_topology_chip
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically


def plan_all_topologies(
    make: Callable[[str, Callable[[], None]], AnyPlan],
    topologies: Sequence[str],
    json_path: Path | None,
) -> None:
    """Plans a config on each topology.

    Args:
      make: function of (topology, callback) that returns a plan, such as `make_plan` or
        `make_embedding_plan`. The callback is called when compilation starts.
      topologies: TPU slices, such as v5p:4x4x4.
      json_path: file for the results: an object, or a list if there are several topologies. None:
        no file.

    Raises:
      UserError: see `make_plan` and `make_embedding_plan`; or the file cannot be written.
    """
    _check_arguments(topologies, json_path)
    plans: list[AnyPlan] = []
    for topology in topologies:
        on_start = partial(print, f'{topology}: compiling, may take minutes', flush=True)
        plans.append(make(topology, on_start))
        print(f'\n{format_plan(plans[-1])}\n', flush=True)
        _write_plans(json_path, plans, as_list=len(topologies) > 1)


def sweep_all_topologies(
    config: Mapping[str, Any],
    topologies: Sequence[str],
    slices: int,
    limit: int,
    json_path: Path | None,
) -> None:
    """Sweeps each topology; see `sweep`.

    Args:
      config: the sections of configs/base.py, as plain values.
      topologies: TPU slices, such as v5p:4x4x4.
      slices: number of slices of each topology.
      limit: maximum number of programs to compile per topology.
      json_path: file for the results of all compiled candidates, as a list. None: no file.

    Raises:
      UserError: see `sweep`; or the file cannot be written.
    """
    _check_arguments(topologies, json_path)
    all_plans: list[Plan] = []

    def add_to_file(plan: Plan) -> None:
        all_plans.append(plan)
        _write_plans(json_path, all_plans, as_list=True)

    for topology in topologies:
        plans, search = sweep(config, topology, slices, limit, add_to_file)
        lines = ['', *(f'  {line}' for line in format_sweep_table(plans)), '']
        if search.left:
            lines += [
                f'  {search.left} candidates were not tried: raise --sweep_limit to try more; '
                f'{search.dropped} were ruled out by the results above'
            ]
        if plans[0].fits:
            lines += [f'  fastest that fits: {format_flags(plans[0])}', '', format_plan(plans[0])]
        else:
            lines += ['  none of these fits: use more chips']
        print('\n'.join(lines) + '\n', flush=True)


def _check_arguments(topologies: Sequence[str], json_path: Path | None) -> None:
    """Raises UserError for an invalid topology or path, before minutes of compilation."""
    for topology in topologies:
        find_topology_chip(topology)
    if json_path and not json_path.absolute().parent.is_dir():
        raise UserError(f'--json {json_path}: no such folder {json_path.absolute().parent}')


def _write_plans(path: Path | None, plans: Sequence[AnyPlan], as_list: bool) -> None:
    if path:
        results = [dataclasses.asdict(plan) for plan in plans]
        write_atomically(path, json.dumps(results if as_list else results[0], indent=2) + '\n')
