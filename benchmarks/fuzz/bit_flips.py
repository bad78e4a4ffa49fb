"""Single wrong bits in a checkpoint, and whether training and embedding notice them."""

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from cpt_jax.embed.load import load_embedder
from cpt_jax.runs.checkpoint import Checkpoints, list_steps, read_metadata, read_tokenizer_file
from cpt_jax.runs.config import flatten

FOUND, UNUSED, SILENT = 'found', 'unused', 'silent'


def flip_bits(random: Random, run: Path, folder: Path, count: int) -> Iterator[str]:
    """Flips bits at random places of a run's latest checkpoint, one at a time.

    Yields what happened, until `count` bits had an effect:
      FOUND: training and embedding noticed the bit, and used the checkpoint before, unchanged.
      UNUSED: the bit is in no value that is read (a file keeps the index of each process besides
        the merged one); everything was loaded bitwise.
      SILENT: anything else.

    Args:
      random: source of the places.
      run: a run with two checkpoints.
      folder: an empty folder for copies of the run.
      count: number of bits that have an effect.
    """
    before, latest = list_steps(run / 'checkpoints')[-2:]
    values = {step: read_values(run, step) for step in (before, latest)}
    texts = ['read a file', 'sort a list']
    vectors = {step: load_embedder(f'{run}@{step}')(texts, 'x') for step in (before, latest)}
    files = [path for path in (run / 'checkpoints' / str(latest)).rglob('*') if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    effects = 0
    while effects < count:
        (path,) = random.choices(files, sizes)
        copy = shutil.copytree(run, folder / 'run')
        _flip_bit(random, copy / path.relative_to(run))
        with contextlib.redirect_stdout(io.StringIO()):
            embedder = load_embedder(str(copy))
            step, state = _restore(copy, values[latest])
        is_same = _equal(state, values[step]) and np.array_equal(
            embedder(texts, 'x'), vectors[embedder.settings['step']]
        )
        shutil.rmtree(copy)
        outcome = SILENT
        if is_same:
            outcome = FOUND if step == before else UNUSED
        effects += outcome != UNUSED
        yield outcome


def count_flips(outcomes: Iterable[str]) -> dict[str, int]:
    """Returns the numbers for the JSON file of benchmarks/faults.py."""
    counts = Counter(outcomes)
    return {
        'flips': counts[FOUND] + counts[SILENT],
        'flips_found': counts[FOUND],
        'flips_unused': counts[UNUSED],
    }


def _flip_bit(random: Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def read_values(run: Path, step: int) -> dict[str, np.ndarray]:
    """Returns all arrays of a checkpoint."""
    path = run / 'checkpoints' / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.metadata(path).metadata,
    )
    state = ocp.load_checkpointables(path, {'state': abstract})['state']
    return {name: np.asarray(value) for name, value in flatten(state)}


def _restore(run: Path, like: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
    """Returns what a training would resume from: the step, and all arrays."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract: dict = {}
    for name, value in like.items():
        *parents, last = name.split('.')
        node = abstract
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=here)
    folder = run / 'checkpoints'
    first = list_steps(folder)[0]
    checkpoints = Checkpoints(
        folder,
        read_tokenizer_file(folder, first),
        read_metadata(folder, first),
        every_steps=1,
        keep_latest=9,
        keep_every=0,
    )
    restored = checkpoints.restore(abstract)
    checkpoints.close()
    assert restored is not None
    return restored[0], {name: np.asarray(value) for name, value in flatten(restored[1])}


def _equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
