import dataclasses

import pytest

from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.initializers import choose_value_and_out_initializers
from cpt_jax.runtime.errors import UserError

SIZES = {'vocab_size': 300, 'width': 96, 'layers': 2, 'heads': 4, 'max_length': 16}


@pytest.mark.parametrize(
    'key', ['positions', 'norm', 'activation', 'init', 'remat', 'dtype', 'layer_loop']
)
def test_unknown_choice_is_rejected_with_key_and_choices(key):
    known = getattr(EncoderConfig(**SIZES), key)
    with pytest.raises(UserError, match=f"model.{key}='other': choose one of .*{known}"):
        EncoderConfig(**SIZES, **{key: 'other'})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'kv_heads': 3}, 'model.kv_heads=3 does not divide model.heads=4'),
        ({'head_width': 5, 'positions': 'rotary'}, 'model.head_width=5 is odd'),
        ({'width': 0}, 'model.width=0: must be 1 or more'),
        (
            {'local_layers': (True,), 'window': 3},
            'model.local_layers has 1 entries, but model.layers=2',
        ),
        (
            {'local_layers': (True, False)},
            'model.window=0: must be 1 or more if a layer is local',
        ),
        (
            {'relative_buckets': 32, 'attention': 'splash'},
            'model.attention=splash has no relative position bias, .* set model.attention to auto',
        ),
        ({'layers': 0}, 'model.layers=0: must be 1 or more'),
        ({'heads': 0}, 'model.heads=0: must be 1 or more'),
        ({'max_length': -1}, 'model.max_length=-1: must be 1 or more'),
        ({'relative_buckets': -1}, 'model.relative_buckets=-1: must be 0 or more'),
        ({'relative_buckets': 3}, 'model.relative_buckets=3: must be 0, or 4 or more'),
        ({'rotary_base': 0.0}, 'model.rotary_base=0.0: must be from 1 to 1e12'),
        ({'attention_width': -1.0}, 'model.attention_width=-1.0: must be from 0 to 10,000,000'),
    ],
    ids=str,
)
def test_invalid_sizes_are_rejected_with_their_key(changes, message):
    with pytest.raises(UserError, match=message):
        EncoderConfig(**SIZES | changes)


def test_passthrough_needs_heads_that_fill_the_width():
    choose_value_and_out_initializers(EncoderConfig(**SIZES, init='passthrough'))
    for changes in ({'kv_heads': 2}, {'head_width': 16}):
        with pytest.raises(UserError, match='model.init=passthrough needs'):
            choose_value_and_out_initializers(EncoderConfig(**SIZES, init='passthrough', **changes))


def test_sizes_of_zero_are_derived():
    assert EncoderConfig(**SIZES, activation='geglu').hidden == 256
    gelu, swiglu = EncoderConfig(**SIZES), EncoderConfig(**SIZES, activation='swiglu')
    assert (gelu.kv_heads, gelu.head_width, gelu.hidden) == (4, 24, 384)
    assert swiglu.hidden == 256 and swiglu.hidden >= 8 / 3 * 96
    given = EncoderConfig(**SIZES, kv_heads=2, head_width=8, hidden=40)
    assert (given.kv_heads, given.head_width, given.hidden) == (2, 8, 40)
    assert (gelu.table_rows, EncoderConfig(**SIZES | {'vocab_size': 256}).table_rows) == (384, 256)


def test_auto_is_resolved_by_the_platform():
    config = EncoderConfig(**SIZES)
    chosen = {name: config.resolve_auto(name) for name in ('cpu', 'gpu', 'tpu')}
    assert {name: (on.dtype, on.layer_loop) for name, on in chosen.items()} == {
        'cpu': ('float32', 'unroll'),
        'gpu': ('bfloat16', 'scan'),
        'tpu': ('bfloat16', 'scan'),
    }
    biased = dataclasses.replace(config, relative_buckets=32)
    assert [biased.resolve_auto(name).attention for name in ('cpu', 'gpu', 'tpu')] == [
        'blocks',
        'masked',
        'masked',
    ]
    decided = dataclasses.replace(config, dtype='bfloat16', layer_loop='scan', attention='masked')
    assert decided.resolve_auto('cpu') == decided and decided.compute_dtype == 'bfloat16'
