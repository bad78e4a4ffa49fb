"""Sliding windows of Mistral and Qwen; those of Gemma and ModernBERT are in test_families.py."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.known import find_family
from cpt_jax.runtime.mesh import make_mesh
from tests.model.family_inputs import VOCABULARY, make_random_ids
from tests.model.test_families import CONFIGS, FACTS, compute_states


def test_sliding_window_hides_the_tokens_before_it():
    """With one layer and rotary positions, the last state is that of the window alone."""
    config = FACTS['configs']['mistral, window'] | {'num_hidden_layers': 1}
    encoder_config = EncoderConfig(vocab_size=VOCABULARY, **find_family(config).shape(config))
    encoder_config = dataclasses.replace(encoder_config, remat='none').resolve_auto('cpu')
    assert encoder_config.max_length == config['max_position_embeddings'] > 16
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        encoder = Encoder(encoder_config, nnx.Rngs(0))
    (text,) = make_random_ids((25,))
    whole, window, shorter = compute_states(encoder, mesh, [text, text[-16:], text[-15:]])
    np.testing.assert_allclose(whole[-1], window[-1], atol=1e-5)
    assert np.abs(whole[-1] - shorter[-1]).max() > 1e-4


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'use_sliding_window': True, 'max_window_layers': 1}, (False, True, True)),
        ({'use_sliding_window': True, 'max_window_layers': 3}, ()),
        ({'use_sliding_window': False}, ()),
        ({'use_sliding_window': True, 'sliding_window': 99, 'max_window_layers': 0}, ()),
        # Bidirectional windows differ between models, so texts are limited to the window.
        ({'use_sliding_window': True, 'max_window_layers': 0, 'is_causal': False}, ()),
    ],
)
def test_sliding_window_is_that_of_the_layers_of_qwen(changes, expected):
    config = CONFIGS['qwen2'] | {'sliding_window': 16} | changes
    config.pop('layer_types', None)
    shape = find_family(config).shape(config)
    assert shape.get('local_layers', ()) == expected
    is_limited = 'is_causal' in changes
    assert shape['max_length'] == (16 if is_limited else config['max_position_embeddings'])
