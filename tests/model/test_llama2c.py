"""llama2.c's files: a LLaMA written as llama2.c's export.py does has the states and losses of
transformers (kept in a golden).
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from cpt_jax.embed.load import load_embedder
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.formats.llama2c import LLAMA2C, Llama2cFile, llama2c_file
from cpt_jax.origin.pretrained import is_pretrained, open_pretrained
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import batch_sharding, make_mesh
from tests.goldens.golden import draw, read_golden
from tests.model.llama2c_inputs import EMBEDDED, LENGTH, SIZES, VOCABULARY, embedded_ids, texts
from tests.model.test_language import packed, token_losses
from tests.text.test_pretrained_tokenizer import as_llama2c, trained_pieces


def expected(case: str, result: str) -> np.ndarray:
    return read_golden('language').arrays[f'llama2c/{case}/{result}']


def neighbours(matrix: np.ndarray) -> np.ndarray:
    """A query or key projection [out, in] that turns units i and i + half of a head -> one that
    turns 2 i and 2 i + 1.
    """
    half = SIZES['hidden_size'] // SIZES['num_attention_heads'] // 2
    return matrix.reshape(-1, 2, half, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def exported(case: str, path: Path) -> Path:
    """As `legacy_export` of llama2.c's export.py writes it, with tied embeddings or a head."""
    told = read_golden('language').facts['llama2c'][case]
    weights = {name: draw(name, described) for name, described in told.items()}

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
        *of_all_layers('self_attn.q_proj', neighbours),
        *of_all_layers('self_attn.k_proj', neighbours),
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
def test_states_and_losses_are_those_of_transformers(tmp_path, case):
    file = Llama2cFile(exported(case, tmp_path / 'model.bin'))
    config = EncoderConfig(vocab_size=VOCABULARY, **LLAMA2C.shape(file.config)).on('cpu')
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(LLAMA2C, file, config, mesh)
    with jax.set_mesh(mesh):
        rows = jax.device_put(packed(texts(), 24), batch_sharding(mesh))
        found = np.asarray(jax.jit(Encoder.all_states)(encoder, *rows))
        losses = np.asarray(jax.jit(token_losses)(encoder, *rows))
    states = np.concatenate(
        [row[segments > 0] for row, segments in zip(found, np.asarray(rows[1]), strict=True)]
    )
    np.testing.assert_allclose(states, expected(case, 'states'), atol=1e-4)
    if case == 'tied':
        there = np.concatenate(
            [row[segments > 0] for row, segments in zip(losses, np.asarray(rows[1]), strict=True)]
        )
        np.testing.assert_allclose(there, expected(case, 'losses'), atol=1e-4)


def test_a_directory_with_such_a_file_embeds(tmp_path):
    folder = exported('tied', tmp_path / 'stories' / 'stories.bin').parent
    assert not is_pretrained(str(tmp_path))
    (folder / 'tok340.bin').write_bytes(as_llama2c(trained_pieces()))
    assert is_pretrained(str(folder)) and llama2c_file(folder) == folder / 'stories.bin'
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
    last_NxD = expected('tied', 'last')
    last_NxD = last_NxD / np.linalg.norm(last_NxD, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(list(EMBEDDED), 'x'), last_NxD, atol=1e-5)


def test_a_head_of_its_own_is_known(tmp_path):
    path = exported('head', tmp_path / 'model.bin')
    assert (
        not Llama2cFile(path).config['tie_word_embeddings']
        and 'lm_head.weight' in Llama2cFile(path).names
    )
    np.testing.assert_array_equal(Llama2cFile(path).read('lm_head.weight').shape, (VOCABULARY, 32))


def test_files_of_another_kind_or_length_are_none(tmp_path):
    assert llama2c_file(tmp_path) is None and llama2c_file(tmp_path / 'nowhere') is None
    whole = exported('tied', tmp_path / 'model.bin').read_bytes()
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
        assert llama2c_file(tmp_path) is None
    with pytest.raises(UserError):
        load_embedder(str(tmp_path))
