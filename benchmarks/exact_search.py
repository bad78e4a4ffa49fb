r"""Measures queries per second of exact search on the CPU, compared with FAISS's flat index.

The two sides take turns, each in its own process.

Example:
  python benchmarks/exact_search.py --documents 1000000 --width 384 --queries 1000 --k 100 \
      --json exact_search.json

Both sides have random unit vectors in memory and use one thread per core. In the JSON, `ratio` is
our queries per second over FAISS's, from medians. `ratio_of_cpu` is the same ratio from CPU time,
which is more reliable on a shared machine. `same` is the fraction of documents that both find.
"""

import json
import os
import statistics
from functools import cache, partial
from pathlib import Path

import numpy as np
from absl import flags

from cpt_jax.cli.program import run_program
from turns import Moment, count_cores, take_turns

Sizes = tuple[int, int, int, int, float]  # documents, width, queries, k, GiB of our blocks


def main() -> None:
    sizes = (_DOCUMENTS.value, _WIDTH.value, _QUERIES.value, _K.value, _MEMORY.value)
    results = measure(sizes, _ROUNDS.value)
    print(
        f'{_QUERIES.value:,} queries, {_DOCUMENTS.value:,} documents of dimension {_WIDTH.value}, '
        f'k = {_K.value}, {results["cores"]} cores'
    )
    print(
        f'{"":<8}{"queries/s":>12}{"seconds":>10}{"fastest":>10}{"slowest":>10}{"CPU seconds":>14}'
    )
    for name, row in results['sides'].items():
        times = ''.join(
            f'{value:>10.2f}'
            for value in (row['seconds'], min(row['all_seconds']), max(row['all_seconds']))
        )
        print(f'{name:<8}{row["queries_per_second"]:>12.1f}{times}{row["cpu_seconds"]:>14.2f}')
    print(
        f'ours / FAISS: {results["ratio"]:.2f} x (CPU time {results["ratio_of_cpu"]:.2f} x); '
        f'same documents: {results["same"]:.4%}'
    )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def measure(sizes: Sizes, rounds: int) -> dict:
    """Returns the results of both sides on the same vectors."""
    ours = {'ours': partial(search_ours, sizes)}
    faiss = {'FAISS': partial(search_faiss, sizes)}
    turns = take_turns({'ours': ours, 'FAISS': faiss}, rounds)
    sides = {}
    for name, calls in turns.items():
        seconds = [times['seconds'] for times, _ in calls]
        median = statistics.median(seconds)
        sides[name] = {
            'seconds': median,
            'cpu_seconds': statistics.median(times['cpu_seconds'] for times, _ in calls),
            'all_seconds': seconds,
            'queries_per_second': sizes[2] / median,
        }
    _, our_documents = turns['ours'][0]
    _, their_documents = turns['FAISS'][0]
    same = [np.isin(a, b).mean() for a, b in zip(our_documents, their_documents, strict=True)]
    return {
        'ratio': sides['FAISS']['seconds'] / sides['ours']['seconds'],
        'ratio_of_cpu': sides['FAISS']['cpu_seconds'] / sides['ours']['cpu_seconds'],
        'same': float(np.mean(same)),
        'cores': count_cores(),
        'sizes': sizes,
        'sides': sides,
    }


def search_ours(sizes: Sizes, number: int) -> tuple[dict[str, float], np.ndarray]:
    """Returns the times of our search, and the documents found, int64[Q, k]."""
    from cpt_jax.search.exact import search_exactly

    queries_QxD, documents_NxD = make_vectors(sizes)
    start = Moment.now()
    hits = search_exactly(
        queries_QxD, [(np.arange(len(documents_NxD)), documents_NxD)], sizes[3], sizes[4]
    )
    return start.until(Moment.now()), hits.documents_Qxk


def search_faiss(sizes: Sizes, number: int) -> tuple[dict[str, float], np.ndarray]:
    """Returns the times of FAISS's search, and the documents found, int64[Q, k].

    Filling the index is not timed.
    """
    queries_QxD, _ = make_vectors(sizes)
    index = make_flat_index(sizes)
    start = Moment.now()
    _, documents_Qxk = index.search(queries_QxD, sizes[3])
    return start.until(Moment.now()), documents_Qxk


@cache
def make_vectors(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Returns random unit vectors of the queries and of the documents."""
    documents, width, queries, *_ = sizes
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((count, width), np.float32) for count in (queries, documents)]
    for vectors_NxD in drawn:
        vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return drawn[0], drawn[1]


@cache
def make_flat_index(sizes: Sizes):
    """Returns FAISS's flat index of the documents."""
    import faiss

    faiss.omp_set_num_threads(count_cores())
    index = faiss.IndexFlatIP(sizes[1])
    _, documents_NxD = make_vectors(sizes)
    index.add(documents_NxD)
    return index


if __name__ == '__main__':
    # Flags are defined here because tests import this module.
    _DOCUMENTS = flags.DEFINE_integer('documents', 1_000_000, 'Number of document vectors.')
    _WIDTH = flags.DEFINE_integer('width', 384, 'Dimension of the vectors.')
    _QUERIES = flags.DEFINE_integer('queries', 1_000, 'Number of queries, searched in one call.')
    _K = flags.DEFINE_integer('k', 100, 'Documents kept for each query.')
    _MEMORY = flags.DEFINE_float(
        'memory', 2.0, 'GiB of memory for our blocks of documents and scores.'
    )
    _ROUNDS = flags.DEFINE_integer('rounds', 3, 'Timed turns of each side.')
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)
