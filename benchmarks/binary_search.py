r"""Measures how much faster binary vectors are searched than float32 vectors, on the CPU.

Both find the best k of the same random unit vectors for the same queries: float32 vectors by exact
search of this package and by FAISS's flat index, if it is installed, binary vectors by Hamming
distance with rescoring by the float32 queries. The sides take turns in one process. `ratio` is the
time of the faster float32 search over that of the binary search, from medians; `ratio_of_cpu` is
the same of CPU time, which is more reliable on a shared machine. The JSON has them for each number
of queries, and the smallest ones.

Example:
  python benchmarks/binary_search.py --documents 1000000 --queries 1 --queries 32 --json binary.json
"""

import json
import os
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from absl import flags

from cpt_jax.cli.program import run_program
from turns import Moment, count_cores

BLOCK = 100_000  # documents that are drawn at once


def main() -> None:
    from cpt_jax.search.quantized_index import BinaryIndex

    documents, width, k = _DOCUMENTS.value, _WIDTH.value, _K.value
    blocks = [*make_blocks(documents, width)]
    binary = BinaryIndex(_RESCORE.value)
    for _ in binary.add_blocks(blocks):
        pass
    floats = make_float_searches(blocks, k)
    rows: list[dict] = []
    print(
        f'{documents:,} documents of dimension {width}, k = {k}, {count_cores()} cores; the last '
        f'columns are how many times as fast binary vectors are searched'
    )
    for count in map(int, _QUERIES.value):
        queries_QxD = draw_unit_vectors(np.random.default_rng(1), count, width)
        searches = floats | {'binary': partial(binary.search, k=k)}
        sides = {name: partial(search, queries_QxD) for name, search in searches.items()}
        times = take_times(sides, _ROUNDS.value)
        rows.append({'queries': count, 'times': times, **compute_ratios(times)})
        print(format_row(rows[-1]), flush=True)
    smallest = {field: min(row[field] for row in rows) for field in ('ratio', 'ratio_of_cpu')}
    print(f'smallest: {smallest["ratio"]:.1f} times (CPU time {smallest["ratio_of_cpu"]:.1f})')
    if _JSON.value:
        settings = {'documents': documents, 'width': width, 'k': k, 'rescore': _RESCORE.value}
        found = {**smallest, **settings, 'cores': count_cores(), 'rows': rows}
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def make_blocks(documents: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns positions and random unit vectors of all documents, block by block."""
    generator = np.random.default_rng(0)
    starts = range(0, documents, BLOCK)
    sizes = [min(BLOCK, documents - start) for start in starts]
    return [
        (np.arange(start, start + size), draw_unit_vectors(generator, size, width))
        for start, size in zip(starts, sizes, strict=True)
    ]


def draw_unit_vectors(generator: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Returns float32 [count, width]: random unit vectors."""
    vectors_NxD = generator.standard_normal((count, width), np.float32)
    return vectors_NxD / np.linalg.norm(vectors_NxD, axis=1, keepdims=True)


def make_float_searches(
    blocks: list[tuple[np.ndarray, np.ndarray]], k: int
) -> dict[str, Callable[[np.ndarray], object]]:
    """Returns the searches of float32 vectors by name; filling an index is not timed."""
    from cpt_jax.search.exact import search_exactly

    searches: dict[str, Callable[[np.ndarray], object]] = {
        'float32': lambda queries_QxD: search_exactly(queries_QxD, blocks, k)
    }
    if find_spec('faiss'):
        import faiss

        faiss.omp_set_num_threads(count_cores())
        index = faiss.IndexFlatIP(blocks[0][1].shape[1])
        for _, vectors_CxD in blocks:
            index.add(vectors_CxD)
        searches['float32, FAISS'] = lambda queries_QxD: index.search(queries_QxD, k)
    return searches


def take_times(
    sides: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Returns the times of each call, by name; the first round, which compiles, is not timed."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, search in sides.items():
            start = Moment.now()
            search()
            if number:
                times[name].append(start.until(Moment.now()))
    return times


def compute_ratios(times: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Returns the time of the faster float32 search over that of the binary search."""

    def compute(field: str) -> float:
        medians = {
            name: statistics.median(row[field] for row in rows) for name, rows in times.items()
        }
        binary = medians.pop('binary')
        return min(medians.values()) / binary

    return {'ratio': compute('seconds'), 'ratio_of_cpu': compute('cpu_seconds')}


def format_row(row: dict) -> str:
    """Returns a line with the milliseconds per query of each side, and the ratios."""
    cells = []
    for name, rows in row['times'].items():
        each = [
            1e3 * statistics.median(times[field] for times in rows) / row['queries']
            for field in ('seconds', 'cpu_seconds')
        ]
        cells.append(f'{name}: {each[0]:.2f} ms (CPU {each[1]:.2f})')
    return (
        f'{row["queries"]:,} queries at once; per query {"; ".join(cells)}; binary '
        f'{row["ratio"]:.1f} times as fast (CPU time {row["ratio_of_cpu"]:.1f})'
    )


if __name__ == '__main__':
    # Flags are defined here because tests import this module.
    _DOCUMENTS = flags.DEFINE_integer('documents', 1_000_000, 'Number of document vectors.')
    _WIDTH = flags.DEFINE_integer('width', 384, 'Dimension of the vectors.')
    _QUERIES = flags.DEFINE_multi_string('queries', ['1', '32'], 'Queries searched in one call.')
    _K = flags.DEFINE_integer('k', 100, 'Documents kept for each query.')
    _RESCORE = flags.DEFINE_integer('rescore', 4, 'Candidates per result of the binary search.')
    _ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed turns of each side.')
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)
