r"""How fast the data alone is: reading, tokenising and packing pairs, and what share of a training
step's time that costs the host.

Example:
  python benchmarks/input_pipeline.py --config configs/quickstart.py \
      --json input_pipeline.json

The first pass over the batches reads and tokenises; later ones find the tokens remembered, and
pack. Core time is CPU time of the whole process, its threads included. The share of a step is as if
the step stood still meanwhile, though data is made beside it. `ratio` in the JSON is the pairs/s of
the first pass over those of the training step, which is compiled and timed for it; with --nostep
neither is.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config
from cpt_jax.cli.program import run_program, use_compilation_cache


def main() -> None:
    name, config = _CONFIG()
    use_compilation_cache()
    found = measure(
        config.to_dict(), _SOURCE.value, _BATCHES.value, _STEPS.value if _STEP.value else 0
    )
    print(
        f'{name}: {found["batches"]:,} batches, {found["batch_pairs"]:,} pairs in up to '
        f'{found["rows"]:,} rows of {found["row_length"]}'
    )
    print(
        f'{"pass":<8}{"pairs/s":>12}{"tokens/s":>12}{"pairs/s a core":>18}'
        f'{"core time a batch":>20}{"share of a step":>18}'
    )
    for kind, row in found['passes'].items():
        share = f'{row["seconds"] / found["step_seconds"]:.1%}' if found['step_seconds'] else ''
        rates = (
            f'{row["pairs_per_second"]:>12,.0f}{row["tokens_per_second"]:>12,.0f}'
            f'{row["pairs_per_core_second"]:>18,.0f}'
        )
        print(f'{kind:<8}{rates}{row["core_seconds"] * 1e3:>17,.1f} ms{share:>18}')
    if found['step_seconds']:
        print(
            f'training step: {found["step_seconds"] * 1e3:,.1f} ms, '
            f'{found["batch_pairs"] / found["step_seconds"]:,.0f} pairs/s'
        )
    print(
        f'useful tokens: {found["useful_share"]:.1%} of the columns computed; pairs that did not '
        f'fit: {found["dropped_share"]:.3%}'
    )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found | {'config': name}, indent=2) + '\n')


def measure(config: Mapping[str, Any], source: str, batches: int, steps: int) -> dict[str, Any]:
    """The figures of two passes over the first batches, and of the training step.

    Args:
      config: the sections of configs/base.py.
      source: see benchmarks/training.py.
      batches: of each pass; 0: as many as the sources hold.
      steps: timed; 0: none, and no `ratio`.
    """
    from cpt_jax.data.batch import Texts
    from training import TrainingStep, run_of
    from turns import in_turn

    run = run_of(config, source)
    data, layout, pairs = run.data, run.layout, run.train.batch_pairs
    batches = batches or sum(map(len, run.sources.values())) // pairs
    # Those of `run` remember the pairs that the layout was measured on.
    texts = Texts(
        list(run.sources.values()),
        run.tokenizer,
        data.max_tokens_x,
        data.max_tokens_y,
        data.negatives,
    )
    run = dataclasses.replace(run, reader=texts)
    passes = {kind: one_pass(run, batches) for kind in ('first', 'later')}
    seconds = (
        statistics.median(in_turn({'step': TrainingStep(run, steps)}, steps)['step'])
        if steps
        else None
    )
    first = passes['first']
    return {
        'ratio': seconds / first['seconds'] if seconds else None,
        'batches': batches,
        'batch_pairs': pairs,
        'rows': layout.parts * layout.chunks * layout.rows,
        'row_length': layout.row_length,
        'passes': passes,
        'step_seconds': seconds,
        'useful_share': first['tokens'] / first['columns'],
        'dropped_share': 1 - first['pairs'] / (batches * pairs),
    }


def one_pass(run, batches: int) -> dict[str, float]:
    """Makes the first batches as training does, in the same threads, and puts them on the devices;
    nothing computes meanwhile.
    """
    import grain
    import numpy as np

    from cpt_jax.data.batch import local_batches, place

    options = grain.ReadOptions(
        num_threads=run.data.threads, prefetch_buffer_size=run.data.prefetch
    )
    # Not run.batches_after: that would go on making batches beyond the last one.
    upcoming = local_batches(run.indices, run.reader, run.layout, run.mesh)[
        :batches
    ].to_iter_dataset(options)
    tokens = pairs = columns = 0
    start, cpu_start = time.perf_counter(), time.process_time()
    for local in upcoming:
        columns += place(local, run.mesh, run.layout).tokens_CxRxS.size
        tokens += sum(int(np.sum(part.segments_CxRxS > 0)) for part in local.values())
        pairs += sum(int(np.sum(part.ids_CxBxT[..., 0] > 0)) for part in local.values())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        'pairs': pairs,
        'tokens': tokens,
        'columns': columns,
        'seconds': seconds / batches,
        'core_seconds': cpu_seconds / batches,
        'pairs_per_second': pairs / seconds,
        'tokens_per_second': tokens / seconds,
        'pairs_per_core_second': pairs / cpu_seconds,
    }


if __name__ == '__main__':
    # Here, as the tests import several of these programs.
    _CONFIG = define_config()
    _SOURCE = flags.DEFINE_enum(
        'source',
        'config',
        ['config', 'python_source'],
        "The config's own sources, or the Python installation.",
    )
    _BATCHES = flags.DEFINE_integer(
        'batches', 0, 'Of each pass; 0: as many as the sources hold.', lower_bound=0
    )
    _STEP = flags.DEFINE_boolean('step', True, 'Also compile and time the training step.')
    _STEPS = flags.DEFINE_integer('steps', 10, 'Steps that are timed.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
    flags.declare_key_flag('config')
    run_program(main)
