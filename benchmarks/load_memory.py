"""Measures the memory to load a pretrained model for embedding.

The model is a random checkpoint of OPT-1.3B's shape in bfloat16, in shards (2.6 GB; --keep keeps
it). A separate process loads it. The results are the growth of its resident memory, at the peak and
at the end, relative to the size of the files. Memory of Python and its libraries from before the
load is not counted.

With --format=bin, the shards are those of torch.save, which must be installed to write them. With
--model, an existing model is loaded, and the results are relative to the size of its parameters in
memory: those of a quantized GGUF file are larger than the file.

Examples:
  python benchmarks/load_memory.py
  python benchmarks/load_memory.py --model models/gemma-3-270m-q4_k_m.gguf
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
from absl import flags
from safetensors.numpy import save_file

from cpt_jax.cli.program import run_program
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.opt import OPT
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.formats.torch_files import TorchFiles

_LAYERS = flags.DEFINE_integer('layers', 24, 'Layers; OPT-1.3B has 24.', lower_bound=2)
_WIDTH = flags.DEFINE_integer('width', 2048, 'Embedding dimension; OPT-1.3B has 2048.')
_FORMAT = flags.DEFINE_enum(
    'format', 'safetensors', ['safetensors', 'bin'], 'Format of the shards.'
)
_SHARD_GB = flags.DEFINE_float('shard_gb', 1.0, 'Maximum size of a shard in GB.')
_FOLDER = flags.DEFINE_string(
    'folder', '', 'Folder of the checkpoint. Default: a temporary directory.'
)
_MODEL = flags.DEFINE_string('model', '', 'Existing model to load instead.')
_KEEP = flags.DEFINE_bool('keep', False, 'Keep the checkpoint.')
_JSON = flags.DEFINE_string(
    'json',
    '',
    'Also write the results to this file; `ratio` is the peak over the size of the files.',
)
_LOAD = flags.DEFINE_bool(
    'load', False, 'Internal: load --folder in this process and print the results.'
)

VOCABULARY = 50_272
POSITIONS = 2048


def main() -> None:
    if _LOAD.value:
        print(json.dumps(_measure_load(_FOLDER.value)))
        return
    if _MODEL.value:
        found = _start_load(_MODEL.value)
        size = found['parameters']
        print(f'parameters: {size / 2**30:.2f} GiB of {_MODEL.value}')
    else:
        folder = Path(_FOLDER.value or tempfile.mkdtemp(prefix='load_memory'))
        try:
            size = _write_checkpoint(folder)
            found = _start_load(str(folder))
        finally:
            if not _KEEP.value:
                shutil.rmtree(folder)
        print(
            f'files: {size / 2**30:.2f} GiB in {found["files"]} shards, {_LAYERS.value} layers of '
            f'width {_WIDTH.value}, bfloat16, {_FORMAT.value}'
        )
    print(f'loaded in {found["seconds"]:.0f} s; growth of resident memory, GiB and x that size:')
    for name in ('peak', 'end'):
        print(f'  {name:<5} {found[name] / 2**30:6.2f}  {found[name] / size:5.2f}')
    if _JSON.value:
        results = {'ratio': found['peak'] / size, 'bytes': size, **found}
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def _start_load(model: str) -> dict[str, float]:
    """Returns the results of `_measure_load` in a new process."""
    command = [sys.executable, __file__, '--load', f'--folder={model}', f'--format={_FORMAT.value}']
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(process.stdout)


def _measure_load(folder: str) -> dict[str, float]:
    """Loads a model in this process.

    Returns:
      Growth of resident memory in bytes (`peak` and `end`), seconds, number of files, and size of
      the parameters in bytes.
    """
    import jax

    from cpt_jax.embed.load import load_embedder

    jax.devices()
    before = _read_memory('VmRSS')
    start = time.perf_counter()
    embedder = load_embedder(folder)
    jax.block_until_ready(embedder.encoder)
    return {
        'peak': _read_memory('VmHWM') - before,
        'end': _read_memory('VmRSS') - before,
        'seconds': time.perf_counter() - start,
        'parameters': sum(array.nbytes for array in jax.tree.leaves(embedder.encoder)),
        'files': len(list(Path(folder).glob(f'*.{_FORMAT.value}'))),
    }


def _read_memory(key: str) -> int:
    """Returns resident memory of this process in bytes: current (VmRSS) or peak (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) * 1024


def _write_checkpoint(folder: Path) -> int:
    """Writes the checkpoint, one shard at a time; returns the size of its shards in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    width = _WIDTH.value
    hidden = 4 * width
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
    # OPT's own class reads only BPE.
    own_class = {'tokenizer_class': 'PreTrainedTokenizerFast'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(own_class))
    shapes = {
        'weight': (width, width),
        'bias': (width,),
        'fc1.weight': (hidden, width),
        'fc2.weight': (width, hidden),
        'fc1.bias': (hidden,),
    }
    shapes |= {
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
    random = np.random.default_rng(0)
    longest_first = sorted(shapes, key=len, reverse=True)
    weight_map: dict[str, str] = {}
    shard = {}
    shards = 0
    for name in names:
        shape = next(shapes[suffix] for suffix in longest_first if name.endswith(suffix))
        shard[name] = random.normal(0, 0.02, shape).astype(np.float32).astype(ml_dtypes.bfloat16)
        shard_bytes = sum(array.nbytes for array in shard.values())
        if name == names[-1] or shard_bytes > _SHARD_GB.value * 1e9:
            shards += 1
            file = f'model-{shards:05d}.{_FORMAT.value}'
            _write_shard(folder / file, shard)
            weight_map |= dict.fromkeys(shard, file)
            shard = {}
    index = (TorchFiles if _FORMAT.value == 'bin' else TensorFiles).INDEX
    (folder / index).write_text(json.dumps({'weight_map': weight_map}))
    return sum(os.path.getsize(path) for path in folder.glob(f'*.{_FORMAT.value}'))


def _write_shard(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if _FORMAT.value == 'safetensors':
        save_file(dict(arrays), path, metadata={'format': 'pt'})
        return
    import torch

    # torch reads no bfloat16 of numpy.
    bits = {name: torch.from_numpy(array.view(np.int16)) for name, array in arrays.items()}
    torch.save({name: tensor.view(torch.bfloat16) for name, tensor in bits.items()}, path)


if __name__ == '__main__':
    run_program(main)
