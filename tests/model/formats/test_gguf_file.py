"""GGUF files give the weights and the config that they were converted from."""

import json
import random
import struct
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.known import find_family
from cpt_jax.model.formats.gguf_file import GgufFile
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.model.rotary import compute_rotary_frequencies
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from tests.goldens.golden import read_golden, restore
from tests.model.formats.gguf_inputs import convert_to_gguf, describe_byte_level, write_gguf

FACTS = read_golden('families').facts['cases']
CASES = [
    'llama',
    'llama, linear',
    'llama, yarn',
    'qwen2',
    'qwen2, tied',
    'qwen3',
    'gemma3',
    'gemma3, all full',
]
# A LLaMA whose rows have whole blocks of every type.
WIDE = {
    'model_type': 'llama',
    'num_hidden_layers': 1,
    'max_position_embeddings': 64,
    'hidden_size': 256,
    'intermediate_size': 256,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-5,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 10_000.0},
}


@pytest.mark.parametrize('case', CASES)
def test_weights_and_shape_are_those_of_the_directory(tmp_path, case):
    """States of these directories are compared with transformers in test_families.py."""
    directory = restore(FACTS[case], tmp_path / 'model')
    config = json.loads((directory / 'config.json').read_text())
    file = GgufFile(convert_to_gguf(directory, tmp_path / 'model.gguf'))
    expected = TensorFiles(directory)
    assert {name.removeprefix('model.') for name in expected.names} == set(file.names)
    for name in expected.names:
        found = file.read(name.removeprefix('model.'))
        np.testing.assert_allclose(found, expected.read(name), atol=1e-7)
        assert list(found.shape) == file.read_shape(name.removeprefix('model.'))
    family = find_family(config)
    shape = family.shape(config)
    if config['model_type'] == 'gemma3_text':
        # GGUF does not store it; llama.cpp and transformers have this value.
        shape['attention_width'] = config['head_dim']
    assert find_family(file.config) is family
    assert family.shape(file.config) == shape
    assert file.config['vocab_size'] == config['vocab_size']
    assert file.config['tie_word_embeddings']  # there is no output.weight


def draw_bytes(kind: Kind) -> np.ndarray:
    """Returns the bytes of a matrix [40, 256]."""
    elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    size = 256 // elements * block_bytes
    return np.random.default_rng(kind).integers(0, 256, (40, size), np.uint8)


KINDS = 'F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS TQ1_0 MXFP4'


@pytest.mark.parametrize('kind', [Kind[name] for name in KINDS.split()], ids=lambda kind: kind.name)
def test_each_type_is_dequantized(tmp_path, monkeypatch, kind):
    data = draw_bytes(kind)
    write_gguf(tmp_path / 'a.gguf', WIDE, {'embed_tokens.weight': data}, kind)
    # More than one block of rows, the last one smaller.
    monkeypatch.setattr('cpt_jax.model.formats.gguf_file._BLOCK_ELEMENTS', 16 * 256)
    narrow = {Kind.F16: 'float16', Kind.BF16: 'bfloat16'}
    with np.errstate(invalid='ignore', over='ignore'):
        found = GgufFile(tmp_path / 'a.gguf').read('embed_tokens.weight')
        assert found.dtype == narrow.get(kind, 'float32')
        np.testing.assert_array_equal(found.astype(np.float32), gguf.dequantize(data, kind))


@pytest.mark.parametrize(
    'kind, tolerance',
    [(Kind.F16, 1e-3), (Kind.BF16, 8e-3), (Kind.Q8_0, 8e-3), (Kind.Q4_1, 0.08)],
    ids=lambda value: getattr(value, 'name', None),
)
def test_quantized_model_is_near_the_original(tmp_path, kind, tolerance):
    random_values = np.random.default_rng(0)
    shapes = {
        'embed_tokens.weight': (40, 256),
        'norm.weight': (256,),
        **{f'layers.0.self_attn.{name}_proj.weight': (256, 256) for name in 'qo'},
        **{f'layers.0.self_attn.{name}_proj.weight': (128, 256) for name in 'kv'},
    }
    tensors = {name: random_values.uniform(-1, 1, shape) for name, shape in shapes.items()}
    file = GgufFile(write_gguf(tmp_path / 'a.gguf', WIDE, tensors, kind))
    for name, tensor in tensors.items():
        np.testing.assert_allclose(
            file.read(name).astype(np.float32), tensor, atol=1e-6 if tensor.ndim < 2 else tolerance
        )
    assert file.read('norm.weight').dtype == np.float32


def test_llama3_scaling_is_recognized(tmp_path):
    scaling = ('llama3', 8.0, 1.0, 4.0, 8192)
    frequencies = compute_rotary_frequencies(64, 10_000.0, ())
    factors = frequencies / compute_rotary_frequencies(64, 10_000.0, scaling)

    def write(factors: np.ndarray) -> Path:
        tensors = {'embed_tokens.weight': np.ones((40, 256)), 'rope_freqs.weight': factors}
        return write_gguf(tmp_path / 'a.gguf', WIDE, tensors)

    file = GgufFile(write(factors))
    assert find_family(file.config).shape(file.config)['rotary_scaling'] == scaling
    assert 'rope_freqs.weight' not in file.names
    with pytest.raises(UserError, match='other factors than a LLaMA 3'):
        GgufFile(write(factors + np.linspace(0, 1, 32)))


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    """A Qwen3 with a tokenizer."""
    folder = tmp_path_factory.mktemp('model')
    facts = read_golden('pretrained').facts['plain']['qwen3']
    tokenizer = describe_byte_level(facts['files']['tokenizer.json'])
    return convert_to_gguf(restore(facts, folder / 'qwen3'), folder / 'a.gguf', tokenizer=tokenizer)


def test_file_cut_short_anywhere_is_one_line(model, tmp_path):
    data = model.read_bytes()
    path = tmp_path / 'cut.gguf'
    for size in [*range(0, 64), *range(64, len(data), len(data) // 60), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(UserError) as error:
            open_pretrained(str(path))
        assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)


def replace(old: bytes, new: bytes, data: bytes, after: bytes = b'') -> bytes:
    """Replaces the bytes that follow `after`, once."""
    assert data.count(after + old) >= 1
    return data.replace(after + old, after + new, 1)


def encode_string(text: str) -> bytes:
    return struct.pack('<Q', len(text)) + text.encode()


TABLE = encode_string('token_embd.weight')
NORM = encode_string('output_norm.weight') + struct.pack('<IQ', 1, 24)
HUGE = struct.pack('<Q', 2**60)
DAMAGES = {
    'no GGUF': (lambda data: b'GGML' + data[4:], 'is not a GGUF file'),
    'version': (lambda data: data[:4] + struct.pack('<I', 1) + data[8:], 'GGUF version 1'),
    'big-endian': (lambda data: data[:4] + struct.pack('>I', 3) + data[8:], 'big-endian'),
    'tensors': (lambda data: data[:8] + HUGE + data[16:], 'is cut short or damaged'),
    'keys': (lambda data: data[:16] + HUGE + data[24:], 'is cut short or damaged'),
    'length of a key': (lambda data: data[:24] + HUGE + data[32:], 'is cut short or damaged'),
    'length of an array': (
        lambda data: replace(
            struct.pack('<Q', 320),
            HUGE,
            data,
            encode_string('tokenizer.ggml.tokens') + struct.pack('<II', 9, 8),
        ),
        'is cut short or damaged',
    ),
    'length of numbers': (
        lambda data: replace(
            struct.pack('<Q', 320),
            HUGE,
            data,
            encode_string('tokenizer.ggml.token_type') + struct.pack('<II', 9, 5),
        ),
        'is cut short or damaged',
    ),
    'type of a value': (
        lambda data: replace(
            struct.pack('<I', 4), struct.pack('<I', 13), data, encode_string('qwen3.block_count')
        ),
        'qwen3.block_count has the type 13, which does not exist',
    ),
    'array of arrays': (
        lambda data: replace(
            struct.pack('<I', 8),
            struct.pack('<I', 9),
            data,
            encode_string('tokenizer.ggml.tokens') + struct.pack('<I', 9),
        ),
        'is an array of type 9',
    ),
    'key twice': (
        lambda data: data.replace(b'qwen3.embedding_length', b'qwen3.context_lengthxx'[:22]),
        'has no qwen3.embedding_length',
    ),
    'dimensions': (
        lambda data: replace(struct.pack('<I', 2), struct.pack('<I', 2**31), data, TABLE),
        'token_embd.weight has 2147483648 dimensions',
    ),
    'rows': (
        lambda data: replace(struct.pack('<Q', 320), HUGE, data, TABLE + struct.pack('<IQ', 2, 24)),
        'is cut short: token_embd.weight ends at byte',
    ),
    'no elements': (
        lambda data: replace(
            struct.pack('<Q', 320), bytes(8), data, TABLE + struct.pack('<IQ', 2, 24)
        ),
        r'token_embd.weight of type F32 has the shape \[0, 24\]',
    ),
    'type of a tensor': (
        lambda data: replace(struct.pack('<I', 0), struct.pack('<I', 99), data, NORM),
        'output_norm.weight has the type 99, which is not known',
    ),
    'integers': (
        lambda data: replace(struct.pack('<I', 0), struct.pack('<I', 26), data, NORM),
        'output_norm.weight has the type I32, which is not supported',
    ),
    'part of a block': (
        lambda data: replace(struct.pack('<I', 0), struct.pack('<I', 8), data, NORM),
        r'output_norm.weight of type Q8_0 has the shape \[24\]',
    ),
    'offset': (
        lambda data: replace(NORM + bytes(4), NORM + bytes(4) + HUGE, data.replace(HUGE, b''), b''),
        'is cut short|is damaged',
    ),
    'name twice': (
        lambda data: data.replace(b'blk.0.attn_k.weight', b'blk.0.attn_q.weight'),
        'there twice',
    ),
    'control character': (
        lambda data: data.replace(b'blk.0.attn_k.weight', b'blk.0.attn\nk.weight'),
        r"'blk.0.attn\\nk.weight' is no tensor name",
    ),
    'architecture': (
        lambda data: data.replace(b'qwen3', b'phi99'),
        "general.architecture='phi99' is not supported; supported are llama, qwen2",
    ),
    'no tokenizer': (
        lambda data: data.replace(b'tokenizer.ggml.', b'tokenizer.xxxx.'),
        'has no tokenizer',
    ),
    'unknown tensor': (
        lambda data: data.replace(b'blk.0.attn_k.weight', b'blk.0.attn_X.weight'),
        None,
    ),
    'layers': (
        lambda data: replace(
            struct.pack('<II', 4, 2),
            struct.pack('<II', 4, 2**31),
            data,
            encode_string('qwen3.block_count'),
        ),
        'qwen3.block_count=2147483648: must be an integer from 1 to 10,000',
    ),
    'width': (
        lambda data: replace(
            struct.pack('<II', 4, 24),
            struct.pack('<II', 4, 9_999_999),
            data,
            encode_string('qwen3.embedding_length'),
        ),
        None,
    ),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_file_is_one_line(model, tmp_path, name):
    damage, message = DAMAGES[name]
    path = tmp_path / 'a.gguf'
    path.write_bytes(damage(model.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        opened = open_pretrained(str(path))
        mesh = make_mesh(devices=jax.devices()[:1])
        opened.load_encoder(EncoderConfig(vocab_size=opened.rows, **opened.shape), mesh)
    assert str(error.value).startswith(f'{path}: ') or message is None
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_changed_bytes_are_an_error_or_a_model(model, tmp_path):
    data = model.read_bytes()
    header = data.rindex(b'.weight') + 100
    path = tmp_path / 'a.gguf'
    chosen = random.Random(0)
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(chosen.randint(1, 4)):
            changed[chosen.randrange(header)] = chosen.choice([0, 1, 127, 128, 255])
        path.write_bytes(changed)
        try:
            open_pretrained(str(path))
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error)


def test_split_file_says_how_to_join_it(model, tmp_path):
    facts = read_golden('pretrained').facts['plain']['qwen3']
    directory = restore(facts, tmp_path / 'qwen3')
    for metadata, message in (
        ({'split.count': 3}, 'one of 3 files of a model: join them with `llama-gguf-split'),
        ({'qwen3.expert_count': 8}, 'a mixture of experts'),
        ({'qwen3.rope.dimension_count': 64}, 'only heads that are rotated as a whole'),
        ({'qwen3.rope.scaling.type': 'longrope'}, "rope.scaling.type='longrope' with factor"),
        ({'qwen3.attention.key_length_swa': 3}, None),
    ):
        path = convert_to_gguf(directory, tmp_path / 'a.gguf', metadata=metadata)
        if message is None:
            GgufFile(path)
            continue
        with pytest.raises(UserError, match=message):
            GgufFile(path)
