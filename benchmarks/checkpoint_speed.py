"""Time to write and load a checkpoint, with and without checksums and compression.

Example:
  python benchmarks/checkpoint_speed.py --mib 256
"""

import shutil
import tempfile
import time
from pathlib import Path

from absl import flags

from cpt_jax.cli.program import run_program

MIB = flags.DEFINE_integer('mib', 256, 'MiB of float32 arrays.', lower_bound=1)
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times that each is loaded; the fastest counts.')


def main() -> None:
    import jax
    from orbax.checkpoint import v1 as ocp

    from cpt_jax.runs.checksums import write_chunk_checksums

    state = make_state(MIB.value)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    folder = Path(tempfile.mkdtemp())
    print(f'{"":24}  write s  load s     MB')
    # Without checksums first: nothing takes the codec out again.
    for has_checksums in (False, True):
        if has_checksums:
            write_chunk_checksums()
        for compress in (True, False):
            context = ocp.Context()
            context.array.saving.use_compression = compress
            path = folder / f'{has_checksums}-{compress}'
            start = time.perf_counter()
            with context:
                ocp.save_checkpointables(path, {'state': state})
            written = time.perf_counter() - start
            loaded = min(measure_load(path, abstract) for _ in range(ROUNDS.value))
            size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
            name = f'{"zstd" if compress else "raw"}{", checksums" if has_checksums else ""}'
            print(f'{name:24}  {written:7.2f}  {loaded:6.3f}  {size / 1e6:5.0f}')
    shutil.rmtree(folder)


def make_state(mib: int) -> dict:
    """Returns 16 arrays of normally distributed numbers, like the weights of a model."""
    import jax

    rows = mib * (1 << 20) // 4 // 16 // 1024
    keys = jax.random.split(jax.random.key(0), 16)
    return {f'w{i}': jax.random.normal(key, (rows, 1024)) for i, key in enumerate(keys)}


def measure_load(path: Path, abstract: dict) -> float:
    """Returns the seconds to load a checkpoint."""
    import jax
    from orbax.checkpoint import v1 as ocp

    start = time.perf_counter()
    jax.block_until_ready(ocp.load_checkpointables(path, {'state': abstract}))
    return time.perf_counter() - start


if __name__ == '__main__':
    run_program(main)
