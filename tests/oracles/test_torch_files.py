"""torch.load returns the tensors that we read from pytorch_model.bin, in both formats, and
transformers chooses the same of several files.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from cpt_jax.model.formats.torch_files import TorchFile
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.runtime.errors import UserError
from tests.model.formats.torch_inputs import FORMATS, make_tensors, write_torch_file
from tests.model.formats.weight_inputs import LAYOUTS


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def check_equal(path: Path) -> None:
    expected = torch.load(path, weights_only=True)
    file = TorchFile(path)
    assert list(file.tensors) == list(expected)
    for name, tensor in expected.items():
        found = file.read(name)
        assert found.dtype == to_numpy(tensor).dtype
        np.testing.assert_array_equal(found, to_numpy(tensor))


@pytest.mark.parametrize('kind', FORMATS)
def test_files_of_torch_are_read(tmp_path, kind):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    base = torch.randn(6, 8)
    tensors = {
        'transposed': base.T,
        'part': base[1:4, 2:7:2],
        'tied': base,
        'expanded': torch.arange(12).expand((1, -1)),
        'parameter': model[0].weight,
        'empty': torch.zeros(0, 3),
        'scalar': torch.tensor(3.5),
        'bool': torch.tensor([True, False]),
    }
    for dtype in ('float16', 'bfloat16', 'float64', 'int64', 'int32', 'int16', 'int8', 'uint8'):
        tensors[dtype] = (10 * base.abs()).to(getattr(torch, dtype))
    state = model.state_dict()
    state.update(tensors)
    torch.save(state, tmp_path / 'a.bin', _use_new_zipfile_serialization=kind == 'zip')
    check_equal(tmp_path / 'a.bin')


@pytest.mark.parametrize('kind', FORMATS)
def test_torch_reads_the_inputs_of_our_tests(tmp_path, kind):
    check_equal(write_torch_file(tmp_path / 'a.bin', make_tensors(), kind))


@pytest.mark.parametrize('kind', FORMATS)
def test_object_that_torch_pickled_is_refused(tmp_path, kind):
    for value in (torch.nn.Linear(2, 2), {'a': torch.eye(2).to_sparse()}):
        torch.save(value, tmp_path / 'a.bin', _use_new_zipfile_serialization=kind == 'zip')
        with pytest.raises(UserError, match=r"a\.bin: cannot be read: its pickle names 'torch\."):
            TorchFile(tmp_path / 'a.bin')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_transformers_chooses_the_same_file(tmp_path, layout):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    saved = {name: to_numpy(tensor).copy() for name, tensor in model.state_dict().items()}
    LAYOUTS[layout](saved, tmp_path)
    theirs = transformers.BertModel.from_pretrained(tmp_path).state_dict()
    ours = open_weight_files(tmp_path)
    assert theirs.keys() == ours.names == saved.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours.read(name), to_numpy(tensor))
        np.testing.assert_array_equal(ours.read(name), saved[name])
