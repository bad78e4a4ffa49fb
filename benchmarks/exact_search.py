r"""Queries per second of exact search on the CPU: ours beside FAISS's flat index, in turn, each in
a process of its own.

Example:
  python benchmarks/exact_search.py --documents 1000000 --width 384 --queries 1000 --k 100 \
      --json exact_search.json

Both have the vectors in memory and as many threads as there are cores; unit vectors are drawn at
random. `ratio` in the JSON is our queries per second over FAISS's, from medians; `ratio_of_cpu` is
that of processor seconds, which tells more on a machine that others use too. `same` is the share of
the documents that both find.
"""

import json
import os
import statistics
from functools import cache, partial
from pathlib import Path

import numpy as np
from absl import flags

from cpt_jax.cli.program import run_program
from turns import Moment, cores, take_turns

Sizes = tuple[int, int, int, int, float]  # documents, width, queries, k, GiB of our blocks


def main() -> None:
    found = measure(
        (_DOCUMENTS.value, _WIDTH.value, _QUERIES.value, _K.value, _MEMORY.value), _ROUNDS.value
    )
    print(
        f'{_QUERIES.value:,} queries, {_DOCUMENTS.value:,} documents of {_WIDTH.value} units, k = '
        f'{_K.value}, {found["cores"]} cores'
    )
    print(
        f'{"":<8}{"queries/s":>12}{"seconds":>10}{"fastest":>10}{"slowest":>10}{"processor s":>14}'
    )
    for name, row in found['sides'].items():
        times = ''.join(
            f'{value:>10.2f}'
            for value in (row['seconds'], min(row['all_seconds']), max(row['all_seconds']))
        )
        print(f'{name:<8}{row["queries_per_second"]:>12.1f}{times}{row["cpu_seconds"]:>14.2f}')
    print(
        f'ours / FAISS: {found["ratio"]:.2f} x (processor seconds {found["ratio_of_cpu"]:.2f} x); '
        f'same documents: {found["same"]:.4%}'
    )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def measure(sizes: Sizes, rounds: int) -> dict:
    """Both sides on the same vectors."""
    turns = take_turns(
        {'ours': {'ours': partial(ours, sizes)}, 'FAISS': {'FAISS': partial(faiss_flat, sizes)}},
        rounds,
    )
    sides = {}
    for name, calls in turns.items():
        seconds, cpu = ([times[kind] for times, _ in calls] for kind in ('seconds', 'cpu_seconds'))
        sides[name] = {
            'seconds': statistics.median(seconds),
            'cpu_seconds': statistics.median(cpu),
            'all_seconds': seconds,
        }
        sides[name]['queries_per_second'] = sizes[2] / sides[name]['seconds']
    (_, mine), (_, theirs) = turns['ours'][0], turns['FAISS'][0]
    same = float(np.mean([np.isin(a, b).mean() for a, b in zip(mine, theirs, strict=True)]))
    ratios = {
        f'ratio{end}': sides['FAISS'][kind] / sides['ours'][kind]
        for end, kind in (('', 'seconds'), ('_of_cpu', 'cpu_seconds'))
    }
    return {**ratios, 'same': same, 'cores': cores(), 'sizes': sizes, 'sides': sides}


def ours(sizes: Sizes, number: int) -> tuple[dict[str, float], np.ndarray]:
    """Times of a search, and int64 [Q, k] documents."""
    from cpt_jax.search.exact import search_exactly

    queries_QxD, documents_NxD = vectors(sizes)
    start = Moment.now()
    hits = search_exactly(
        queries_QxD, [(np.arange(len(documents_NxD)), documents_NxD)], sizes[3], sizes[4]
    )
    return start.until(Moment.now()), hits.documents_QxK


def faiss_flat(sizes: Sizes, number: int) -> tuple[dict[str, float], np.ndarray]:
    """The same of FAISS; the index is filled beforehand."""
    queries_QxD, index = vectors(sizes)[0], flat_index(sizes)
    start = Moment.now()
    _, documents_QxK = index.search(queries_QxD, sizes[3])
    return start.until(Moment.now()), documents_QxK


@cache
def vectors(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Queries and documents of unit length."""
    documents, width, queries, *_ = sizes
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((count, width), np.float32) for count in (queries, documents)]
    for vectors_NxD in drawn:
        vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return drawn[0], drawn[1]


@cache
def flat_index(sizes: Sizes):
    import faiss

    faiss.omp_set_num_threads(cores())
    index = faiss.IndexFlatIP(sizes[1])
    index.add(vectors(sizes)[1])
    return index


if __name__ == '__main__':
    # Here, as the tests import this program.
    _DOCUMENTS = flags.DEFINE_integer('documents', 1_000_000, 'Vectors that are searched.')
    _WIDTH = flags.DEFINE_integer('width', 384, 'Units of a vector.')
    _QUERIES = flags.DEFINE_integer('queries', 1_000, 'Searched for at once.')
    _K = flags.DEFINE_integer('k', 100, 'Documents kept for each query.')
    _MEMORY = flags.DEFINE_float('memory', 2.0, 'GiB of our blocks of documents and scores.')
    _ROUNDS = flags.DEFINE_integer('rounds', 3, 'Turns of each side.')
    _JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)
