r"""Measures the memory and the time to mine negatives, given the vectors of queries and documents.

A separate process makes random unit vectors, as if they were read from the disk, and mines. The
results are the growth of its resident memory during the mining, at the peak, and the seconds.
Memory from before (Python, its libraries and the vectors) is not counted.

Example:
  python benchmarks/mining_memory.py --queries 10000 --documents 100000 --width 384 \
      --json mining_memory.json

In the JSON, `ratio` is the peak over the size of the vectors. --peer measures the function
`mine_hard_negatives` of sentence-transformers, which must be installed, in the same way.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from absl import flags

from cpt_jax.cli.program import run_program

_QUERIES = flags.DEFINE_integer('queries', 10_000, 'Number of query vectors.')
_DOCUMENTS = flags.DEFINE_integer('documents', 100_000, 'Number of document vectors.')
_WIDTH = flags.DEFINE_integer('width', 384, 'Dimension of the vectors.')
_MEMORY = flags.DEFINE_float('memory', 1.0, 'GiB for the search, as in launch/mine.py.')
_PEER = flags.DEFINE_bool('peer', False, 'Measure sentence-transformers too.')
_JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
_SIDE = flags.DEFINE_string('side', '', 'Internal: measure this side in this process.')

NEGATIVES, FIRST, LAST = 7, 10, 100


def main() -> None:
    if _SIDE.value:
        measure = {'ours': measure_ours, 'peer': measure_peer}[_SIDE.value]
        print(json.dumps(measure(*make_vectors())))
        return
    sides = ['ours', *(['peer'] if _PEER.value else [])]
    results = {side: _measure_in_process(side) for side in sides}
    size = (_QUERIES.value + _DOCUMENTS.value) * _WIDTH.value * 4
    print(
        f'{_QUERIES.value:,} queries, {_DOCUMENTS.value:,} documents of dimension {_WIDTH.value}: '
        f'{size / 2**30:.2f} GiB of vectors; range {FIRST}:{LAST}, {NEGATIVES} negatives'
    )
    print(f'{"":<24}{"GiB":>8}{"seconds":>10}{"CPU seconds":>14}{"negatives":>12}')
    for side, row in results.items():
        print(
            f'{side:<24}{row["peak"] / 2**30:>8.2f}{row["seconds"]:>10.1f}'
            f'{row["cpu_seconds"]:>14.1f}{row["negatives"]:>12,}'
        )
    print('GiB: growth of resident memory at its peak, beside the vectors')
    if _JSON.value:
        found = {'ratio': results['ours']['peak'] / size, 'bytes': size, **results}
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def _measure_in_process(side: str) -> dict[str, float]:
    given = [f'--{name}={flags.FLAGS[name].value}' for name in ('queries', 'documents', 'width')]
    command = [sys.executable, __file__, f'--side={side}', *given, f'--memory={_MEMORY.value}']
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_vectors() -> tuple[np.ndarray, np.ndarray]:
    """Returns random unit vectors of queries and documents. The positive of query i is document i;
    its score is about 0.5.
    """
    random = np.random.default_rng(0)
    sizes = (_QUERIES.value, _WIDTH.value), (_DOCUMENTS.value, _WIDTH.value)
    queries_QxD, documents_NxD = (random.standard_normal(size, np.float32) for size in sizes)
    documents_NxD[: len(queries_QxD)] += queries_QxD[: len(documents_NxD)]
    for vectors_NxD in (queries_QxD, documents_NxD):
        for start in range(0, len(vectors_NxD), 10_000):  # without a copy of all
            part = vectors_NxD[start : start + 10_000]
            part /= np.linalg.norm(part, axis=1, keepdims=True)
    return queries_QxD, documents_NxD


def measure_ours(queries_QxD: np.ndarray, documents_NxD: np.ndarray) -> dict[str, float]:
    """Returns memory and time of our mining."""
    import jax

    from cpt_jax.data.pairs import Pair
    from cpt_jax.mining.miner import Miner, ModelVectors
    from cpt_jax.mining.pair_index import index_pairs
    from cpt_jax.mining.pairs_to_mine import PairsToMine
    from cpt_jax.mining.rules import MiningRules
    from cpt_jax.mining.stored_vectors import SHARD_SIZE, StoredVectors

    jax.devices()
    stored = [
        StoredVectors([part[i : i + SHARD_SIZE] for i in range(0, len(part), SHARD_SIZE)])
        for part in (queries_QxD, documents_NxD)
    ]
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        count = min(len(queries_QxD), len(documents_NxD))
        pairs = [Pair(f'q{i}', f'd{i}', id=str(i)) for i in range(count)]
        corpus = [f'd{i}' for i in range(len(documents_NxD))]
        data = PairsToMine(pairs, lambda: corpus, ())
        index = index_pairs(data, Path(folder), 'stripped')
        rules = MiningRules(FIRST, LAST, NEGATIVES, equal_texts='stripped')
        model = ModelVectors(*stored, memory=_MEMORY.value)
        mined = Miner(index, rules, model).mine(Path(folder))
    return meter.read() | {'negatives': int((mined.negatives.documents_QxM >= 0).sum())}


def measure_peer(queries_QxD: np.ndarray, documents_NxD: np.ndarray) -> dict[str, float]:
    """Returns memory and time of sentence-transformers' mining."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    count = min(len(queries_QxD), len(documents_NxD))
    model = SimpleNamespace(
        device=torch.device('cpu'),
        encode_query=lambda texts, **_: queries_QxD,
        encode_document=lambda texts, **_: documents_NxD,
        similarity=lambda a, b: torch.as_tensor(a) @ torch.as_tensor(b).T,
        similarity_pairwise=lambda a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(1),
    )
    meter = Meter()
    columns = {'x': [f'q{i}' for i in range(count)], 'y': [f'd{i}' for i in range(count)]}
    found = mine_hard_negatives(
        Dataset.from_dict(columns),
        model,
        corpus=[f'd{i}' for i in range(len(documents_NxD))],
        range_min=FIRST,
        range_max=LAST,
        relative_margin=0.05,
        num_negatives=NEGATIVES,
        faiss_batch_size=1_024,
        verbose=False,
    )
    return meter.read() | {'negatives': len(found)}


class Meter:
    """Measures memory and time from its construction."""

    def __init__(self):
        self._memory = _read_memory('VmRSS')
        # Resets the peak, which the making of the vectors may have raised.
        Path('/proc/self/clear_refs').write_text('5')
        self._start = time.perf_counter()
        self._cpu_start = time.process_time()

    def read(self) -> dict[str, float]:
        return {
            'peak': _read_memory('VmHWM') - self._memory,
            'seconds': time.perf_counter() - self._start,
            'cpu_seconds': time.process_time() - self._cpu_start,
        }


def _read_memory(key: str) -> int:
    """Returns resident memory of this process in bytes: current (VmRSS) or peak (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == '__main__':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    run_program(main)
