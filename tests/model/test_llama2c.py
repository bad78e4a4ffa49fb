"""A LLaMA in llama2.c's format has the states and losses of transformers (stored in a golden)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from cpt_jax.embed.load import load_embedder
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.llama2c import LLAMA2C, Llama2cFile, find_llama2c_file
from cpt_jax.origin.pretrained import is_pretrained, open_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import get_batch_sharding, make_mesh
from tests.goldens.golden import draw, read_golden
from tests.model.llama2c_inputs import EMBEDDED, LENGTH, SIZES, VOCABULARY, embedded_ids, texts
from tests.model.test_language import compute_token_losses, pack_rows
from tests.text.test_pretrained_tokenizer import convert_to_llama2c, train_sentencepiece


def read_expected(case: str, result: str) -> np.ndarray:
    return read_golden('language').arrays[f'llama2c/{case}/{result}']


def interleave_halves(matrix: np.ndarray) -> np.ndarray:
    """Reorders a query or key projection [out, in].

    Rotary pairs (i, i + half) of each head become (2 i, 2 i + 1).
    """
    half = SIZES['hidden_size'] // SIZES['num_attention_heads'] // 2
    return matrix.reshape(-1, 2, half, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def export_llama2c(case: str, path: Path) -> Path:
    """Writes a file as `legacy_export` in llama2.c's export.py does, tied or with a head."""
    descriptions = read_golden('language').facts['llama2c'][case]
    weights = {name: draw(name, description) for name, description in descriptions.items()}

    def of_all_layers(name: str, change=lambda matrix: matrix) -> list[np.ndarray]:
        return [
            change(weights[f'model.layers.{i}.{name}.weight'])
            for i in range(SIZES['num_hidden_layers'])
        ]

    tied = case == 'tied'
    head_width = SIZES['hidden_size'] // SIZES['num_attention_heads']
    parts = [
        np.array(
            [*(SIZES[key] for key in SIZES), VOCABULARY if tied else -VOCABULARY, LENGTH], np.int32
        ),
        weights['model.embed_tokens.weight'],
        *of_all_layers('input_layernorm'),
        *of_all_layers('self_attn.q_proj', interleave_halves),
        *of_all_layers('self_attn.k_proj', interleave_halves),
        *of_all_layers('self_attn.v_proj'),
        *of_all_layers('self_attn.o_proj'),
        *of_all_layers('post_attention_layernorm'),
        *of_all_layers('mlp.gate_proj'),
        *of_all_layers('mlp.down_proj'),
        *of_all_layers('mlp.up_proj'),
        weights['model.norm.weight'],
        np.zeros((2, LENGTH, head_width // 2), np.float32),
        *([] if tied else [weights['lm_head.weight']]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b''.join(part.tobytes() for part in parts))
    return path


@pytest.mark.parametrize('case', ['tied', 'head'])
def test_states_and_losses_match_transformers(tmp_path, case):
    file = Llama2cFile(export_llama2c(case, tmp_path / 'model.bin'))
    config = EncoderConfig(vocab_size=VOCABULARY, **LLAMA2C.shape(file.config)).resolve_auto('cpu')
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(LLAMA2C, file, config, mesh)
    with jax.set_mesh(mesh):
        rows = jax.device_put(pack_rows(texts(), 24), get_batch_sharding(mesh))
        found = np.asarray(jax.jit(Encoder.compute_token_states)(encoder, *rows))
        losses = np.asarray(jax.jit(compute_token_losses)(encoder, *rows))
    states = np.concatenate(
        [row[segments > 0] for row, segments in zip(found, np.asarray(rows[1]), strict=True)]
    )
    np.testing.assert_allclose(states, read_expected(case, 'states'), atol=1e-4)
    if case == 'tied':
        present_losses = np.concatenate(
            [row[segments > 0] for row, segments in zip(losses, np.asarray(rows[1]), strict=True)]
        )
        np.testing.assert_allclose(present_losses, read_expected(case, 'losses'), atol=1e-4)


def test_directory_with_a_llama2c_file_can_embed(tmp_path):
    folder = export_llama2c('tied', tmp_path / 'stories' / 'stories.bin').parent
    assert not is_pretrained(str(tmp_path))
    (folder / 'tok340.bin').write_bytes(convert_to_llama2c(train_sentencepiece()))
    assert is_pretrained(str(folder)) and find_llama2c_file(folder) == folder / 'stories.bin'
    found = open_pretrained(str(folder))
    assert (found.rows, found.max_tokens, found.tokenizer.vocab_size, found.shape['tied']) == (
        VOCABULARY,
        LENGTH,
        340,
        True,
    )
    embed = load_embedder(str(folder))
    ids = found.tokenizer.encode(list(EMBEDDED), 'x', LENGTH)
    assert list(map(list, ids)) == list(map(list, embedded_ids()))
    last_NxD = read_expected('tied', 'last')
    last_NxD = last_NxD / np.linalg.norm(last_NxD, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(list(EMBEDDED), 'x'), last_NxD, atol=1e-5)


def test_separate_head_is_detected(tmp_path):
    path = export_llama2c('head', tmp_path / 'model.bin')
    assert (
        not Llama2cFile(path).config['tie_word_embeddings']
        and 'lm_head.weight' in Llama2cFile(path).names
    )
    np.testing.assert_array_equal(Llama2cFile(path).read('lm_head.weight').shape, (VOCABULARY, 32))


def test_files_of_another_kind_or_size_are_ignored(tmp_path):
    assert find_llama2c_file(tmp_path) is None and find_llama2c_file(tmp_path / 'nowhere') is None
    whole = export_llama2c('tied', tmp_path / 'model.bin').read_bytes()
    for content in (
        b'',
        whole[:20],
        whole[:28],
        whole[:-1],
        whole + b'x',
        b'\xff' * 200,
        bytes(200),
    ):
        (tmp_path / 'model.bin').write_bytes(content)
        assert find_llama2c_file(tmp_path) is None
    with pytest.raises(UserError):
        load_embedder(str(tmp_path))
