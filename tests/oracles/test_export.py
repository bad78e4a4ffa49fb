"""Tests that transformers loads exports; the writer of the golden `export` compares most."""

import torch
import transformers

from cpt_jax.exporting.directory import export
from cpt_jax.model.formats.safetensors_files import TensorFiles
from tests.conftest import make_tokenizer
from tests.exporting.conftest import export_run


def test_transformers_loads_sharded_weights(tmp_path):
    run, out = export_run(tmp_path, make_tokenizer(), causal=True, layers=2)
    split = tmp_path / 'split'
    export(str(run), split, dtype='float32', shard_bytes=20_000, license_id='mit')
    assert len(list(split.glob('model-*.safetensors'))) > 3
    states = transformers.AutoModel.from_pretrained(split).state_dict()
    one = TensorFiles(out)
    assert all(torch.equal(states[name], torch.from_numpy(one.read(name))) for name in one.names)
