"""Memory that it takes to load a pretrained model for embedding: a checkpoint of OPT-1.3B's shape,
random, bfloat16, in shards.

Writes the checkpoint (2.6 GB; --keep leaves it there), loads it in a process of its own, and tells
how far that process's memory grew, at its peak and in the end, beside the size of the files. What
is not counted: Python and its libraries, before the load begins.

Example:
  python benchmarks/load_memory.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
from absl import flags
from safetensors.numpy import save_file

from cpt_jax.cli.program import run_program
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.opt import OPT
from cpt_jax.model.formats.safetensors_files import INDEX

_LAYERS = flags.DEFINE_integer('layers', 24, 'OPT-1.3B has 24.', lower_bound=2)
_WIDTH = flags.DEFINE_integer('width', 2048, 'OPT-1.3B has 2048.')
_SHARD_GB = flags.DEFINE_float('shard_gb', 1.0, 'Gigabytes of a file.')
_FOLDER = flags.DEFINE_string(
    'folder', '', 'Where the checkpoint goes; a temporary directory by default.'
)
_KEEP = flags.DEFINE_bool('keep', False, 'Leave the checkpoint there.')
_JSON = flags.DEFINE_string(
    'json', '', 'Where to write the figures too; `ratio` is the peak in times of the files.'
)
_LOAD = flags.DEFINE_bool(
    'load', False, 'Load --folder in this process; the benchmark starts itself with it.'
)

VOCABULARY, POSITIONS = 50_272, 2048


def main() -> None:
    if _LOAD.value:
        print(json.dumps(_measured(_FOLDER.value)))
        return
    folder = Path(_FOLDER.value or tempfile.mkdtemp(prefix='load_memory'))
    try:
        size = _write(folder)
        command = [sys.executable, __file__, '--load', f'--folder={folder}']
        found = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
    finally:
        if not _KEEP.value:
            shutil.rmtree(folder)
    print(
        f'files: {size / 2**30:.2f} GiB in {found["files"]} shards, {_LAYERS.value} layers of '
        f'width {_WIDTH.value}, bfloat16'
    )
    print(f'loaded in {found["seconds"]:.0f} s; resident memory grew by, GiB and times the files:')
    for name in ('peak', 'end'):
        print(f'  {name:<5} {found[name] / 2**30:6.2f}  {found[name] / size:5.2f}')
    if _JSON.value:
        Path(_JSON.value).write_text(
            json.dumps({'ratio': found['peak'] / size, 'bytes': size, **found}, indent=2) + '\n'
        )


def _measured(folder: str) -> dict[str, float]:
    """Loads a directory; bytes that resident memory grew by."""
    import jax

    from cpt_jax.embed.load import load_embedder

    jax.devices()
    before, start = _resident('VmRSS'), time.perf_counter()
    embedder = load_embedder(folder)
    jax.block_until_ready(embedder.encoder)
    return {
        'peak': _resident('VmHWM') - before,
        'end': _resident('VmRSS') - before,
        'seconds': time.perf_counter() - start,
        'files': len(list(Path(folder).glob('*.safetensors'))),
    }


def _resident(key: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    (line,) = (
        line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) * 1024


def _write(folder: Path) -> int:
    """Makes the checkpoint, a shard at a time; returns the size of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    width, hidden = _WIDTH.value, 4 * _WIDTH.value
    config = {
        'model_type': 'opt', 'hidden_size': width, 'ffn_dim': hidden,
        'num_hidden_layers': _LAYERS.value,
        'num_attention_heads': width // 64, 'max_position_embeddings': POSITIONS,
        'vocab_size': VOCABULARY, 'word_embed_proj_dim': width,
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(config))
    words = {f'w{i}': i for i in range(VOCABULARY - 100)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0')).save(
        str(folder / 'tokenizer.json')
    )
    random, where, shard, shards = np.random.default_rng(0), {}, {}, 0
    sizes = {
        'weight': (width, width),
        'bias': (width,),
        'fc1.weight': (hidden, width),
        'fc2.weight': (width, hidden),
        'fc1.bias': (hidden,),
    }
    sizes |= {
        'embed_tokens.weight': (VOCABULARY, width),
        'embed_positions.weight': (POSITIONS + 2, width),
        'layer_norm.weight': (width,),
    }
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **OPT.shape(config))
    layers = [
        tensor.name.format(i=i)
        for i in range(_LAYERS.value)
        for tensor in OPT.layer(encoder_config)
    ]
    names = [tensor.name for tensor in OPT.outer(encoder_config)] + layers
    for name in names:
        size = next(
            sizes[end] for end in sorted(sizes, key=len, reverse=True) if name.endswith(end)
        )
        shard[name] = random.normal(0, 0.02, size).astype(np.float32).astype(ml_dtypes.bfloat16)
        if (
            name == names[-1]
            or sum(array.nbytes for array in shard.values()) > _SHARD_GB.value * 1e9
        ):
            shards += 1
            file = f'model-{shards:05d}.safetensors'
            save_file(shard, folder / file, metadata={'format': 'pt'})
            where |= dict.fromkeys(shard, file)
            shard = {}
    (folder / INDEX).write_text(json.dumps({'weight_map': where}))
    return sum(os.path.getsize(path) for path in folder.glob('*.safetensors'))


if __name__ == '__main__':
    run_program(main)
