r"""Measures the input pipeline: reading, tokenizing and packing pairs, compared with the time of a
training step.

Example:
  python benchmarks/input_pipeline.py --config configs/quickstart.py \
      --json input_pipeline.json

The first pass over the batches reads, tokenizes and packs; later passes find the tokens in a cache
and only pack. Core time is the CPU time of all threads of the process. The fraction of a step is
the time of a batch over that of a step; in training the two overlap. `ratio` in the JSON is the
pairs/s of the first pass over those of the training step. With --nostep no step is compiled or
timed, and `ratio` is null.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from cpt_jax.cli.config_flag import define_config_flag
from cpt_jax.cli.program import run_program, use_compilation_cache


def main() -> None:
    name, config, _ = _CONFIG()
    use_compilation_cache()
    steps = _STEPS.value if _STEP.value else 0
    found = measure(config.to_dict(), _SOURCE.value, _BATCHES.value, steps)
    print(
        f'{name}: {found["batches"]:,} batches, {found["batch_pairs"]:,} pairs in up to '
        f'{found["rows"]:,} rows of {found["row_length"]}'
    )
    print(
        f'{"pass":<8}{"pairs/s":>12}{"tokens/s":>12}{"pairs/s a core":>18}'
        f'{"core time a batch":>20}{"fraction of step":>18}'
    )
    for kind, row in found['passes'].items():
        fraction = ''
        if found['step_seconds']:
            fraction = f'{row["seconds"] / found["step_seconds"]:.1%}'
        rates = (
            f'{row["pairs_per_second"]:>12,.0f}{row["tokens_per_second"]:>12,.0f}'
            f'{row["pairs_per_core_second"]:>18,.0f}'
        )
        print(f'{kind:<8}{rates}{row["core_seconds"] * 1e3:>17,.1f} ms{fraction:>18}')
    if found['step_seconds']:
        print(
            f'training step: {found["step_seconds"] * 1e3:,.1f} ms, '
            f'{found["batch_pairs"] / found["step_seconds"]:,.0f} pairs/s'
        )
    print(
        f'tokens: {found["useful_share"]:.1%} of the computed columns; dropped pairs: '
        f'{found["dropped_share"]:.3%}'
    )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found | {'config': name}, indent=2) + '\n')


def measure(config: Mapping[str, Any], source: str, batches: int, steps: int) -> dict[str, Any]:
    """Returns the results of two passes over the first batches, and of the training step.

    Args:
      config: the sections of configs/base.py.
      source: see benchmarks/training.py.
      batches: batches of each pass; 0: one epoch of the sources.
      steps: timed steps; 0: no step is compiled, and `ratio` is None.
    """
    from cpt_jax.data.token_reader import PairTokenReader
    from training import TrainingStep, make_run
    from turns import time_in_turn

    run = make_run(config, source)
    data, layout, pairs = run.data, run.layout, run.train.batch_pairs
    batches = batches or sum(map(len, run.sources.values())) // pairs
    # Those of `run` remember the pairs that the layout was measured on.
    texts = PairTokenReader(
        list(run.sources.values()),
        run.tokenizer,
        data.max_tokens_x,
        data.max_tokens_y,
        data.negatives,
    )
    run = dataclasses.replace(run, reader=texts)
    passes = {kind: time_pass(run, batches) for kind in ('first', 'later')}
    seconds = None
    if steps:
        times = time_in_turn({'step': TrainingStep(run, steps)}, steps)
        seconds = statistics.median(times['step'])
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


def time_pass(run, batches: int) -> dict[str, float]:
    """Makes the first batches with the threads of training and transfers them to the devices.

    No step runs meanwhile.

    Returns:
      Counts of pairs, tokens and computed columns, times per batch, and rates.
    """
    import grain
    import numpy as np

    from cpt_jax.data.batch import make_local_batches, place_batch

    options = grain.ReadOptions(
        num_threads=run.data.threads, prefetch_buffer_size=run.data.prefetch
    )
    # Not run.iterate_batches_after, which would prefetch batches after the last one.
    upcoming = make_local_batches(run.indices, run.reader, run.layout, run.mesh)[
        :batches
    ].to_iter_dataset(options)
    tokens = pairs = columns = 0
    start = time.perf_counter()
    cpu_start = time.process_time()
    for local in upcoming:
        columns += place_batch(local, run.mesh, run.layout).tokens_JxRxS.size
        tokens += sum(int(np.sum(part.segments_JxRxS > 0)) for part in local.values())
        pairs += sum(int(np.sum(part.ids_JxBxTxZ[..., 0, 0] > 0)) for part in local.values())
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
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
    # Flags are defined here because tests import several of these modules.
    _CONFIG = define_config_flag()
    _SOURCE = flags.DEFINE_enum(
        'source',
        'config',
        ['config', 'python_source'],
        'Sources: those of the config, or the Python installation.',
    )
    _BATCHES = flags.DEFINE_integer(
        'batches', 0, 'Batches of each pass; 0: one epoch of the sources.', lower_bound=0
    )
    _STEP = flags.DEFINE_boolean('step', True, 'Also compile and time the training step.')
    _STEPS = flags.DEFINE_integer('steps', 10, 'Timed steps.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    flags.declare_key_flag('config')
    run_program(main)
