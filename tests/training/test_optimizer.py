"""Weight decay, the AdamW update, the learning-rate schedule and the bound of the scale."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cpt_jax.data.batch import Batch
from cpt_jax.loss.infonce import MAX_LOG_SCALE, InfoNCE
from cpt_jax.model.config import EncoderConfig
from cpt_jax.runs.checkpoint import from_nested_dict, to_nested_dict
from cpt_jax.runs.config import flatten
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import AXES, assign_mesh_shardings
from cpt_jax.training.contrastive import Contrastive, ContrastiveParams
from cpt_jax.training.optimizer import make_decay_mask, make_optimizer
from cpt_jax.training.step import TrainState, make_step

CONFIG = EncoderConfig(
    vocab_size=20,
    width=16,
    layers=1,
    heads=2,
    max_length=8,
    remat='none',
    dtype='float32',
    layer_loop='unroll',
)
SETTINGS = {
    'steps': 100, 'peak_lr': 0.01, 'warmup_steps': 10, 'final_share': 0.1,
    'weight_decay': 0.5, 'b1': 0.9, 'b2': 0.98, 'epsilon': 1e-3, 'clip_norm': 1.0,
}  # fmt: skip


def make_one_device_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh(
        (1, 1, 1), AXES, (jax.sharding.AxisType.Explicit,) * 3, devices=jax.devices()[:1]
    )


def make_params(config: EncoderConfig) -> ContrastiveParams:
    """Returns parameters that are small positive numbers, without compiling an initializer."""
    mesh = make_one_device_mesh()
    with jax.set_mesh(mesh):
        abstract = assign_mesh_shardings(
            jax.eval_shape(lambda: ContrastiveParams(config, InfoNCE(), 1, nnx.Rngs(0))), mesh
        )
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: jax.device_put(random.uniform(0.01, 0.2, w.shape).astype(np.float32), w.sharding),
        abstract,
    )


def test_weight_decay_applies_only_to_matrices():
    with_decay, without_decay = set(), set()
    for changes in (
        {},
        {'activation': 'swiglu'},
        {'norm': 'rmsnorm', 'positions': 'rotary', 'bias': False},
    ):
        params = make_params(dataclasses.replace(CONFIG, **changes))
        mask = dict(flatten(to_nested_dict(make_decay_mask(params))))
        assert mask.keys() == dict(flatten(to_nested_dict(params))).keys()
        with_decay |= {name.rpartition('.')[2] for name, decays in mask.items() if decays}
        without_decay |= {name.rpartition('.')[2] for name, decays in mask.items() if not decays}
    assert with_decay == {'token_embedding', 'query', 'key', 'value', 'out', 'up', 'gate', 'down'}
    assert without_decay == {
        'log_scale', 'position_embedding', 'scale', 'bias',
        'query_bias', 'key_bias', 'value_bias', 'out_bias', 'up_bias', 'down_bias',
    }  # fmt: skip


class FewParams(nnx.Module):
    """A module with one [3, 2] parameter for each name."""

    def __init__(self, *names: str):
        random = np.random.default_rng(1)
        for name in names:
            setattr(self, name, nnx.Param(jnp.asarray(random.normal(size=(3, 2)), jnp.float32)))


def test_parameter_with_an_unknown_name_is_an_error():
    with pytest.raises(KeyError, match='wobble'):
        make_decay_mask(FewParams('query', 'wobble'))


@pytest.mark.parametrize('size', [0.0, 0.01, 30.0])
def test_updates_are_adamw_after_clipping(size):
    """Compares three steps with numpy. The gradients have global norms of `size` x 1, 2, 3, and are
    clipped to 1.
    """
    optimizer, _ = make_optimizer(**SETTINGS | {'warmup_steps': 2})
    params = FewParams('query', 'scale', 'log_scale')  # only the first has weight decay
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = {name: np.array(value, np.float64) for name, value in to_nested_dict(params).items()}
    first, second = ({name: np.zeros((3, 2)) for name in expected} for _ in range(2))
    for number, rate in [(1, 0.0), (2, 0.005), (3, 0.01)]:
        direction = np.random.default_rng(number).normal(size=(3, 3, 2))
        gradients = dict(
            zip(expected, direction / np.linalg.norm(direction) * size * number, strict=True)
        )
        for name, gradient in gradients.items():
            gradient = gradient / max(1, size * number)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            adam = (
                first[name]
                / (1 - 0.9**number)
                / (np.sqrt(second[name] / (1 - 0.98**number)) + 1e-3)
            )
            expected[name] = expected[name] - rate * (
                adam + 0.5 * expected[name] * (name == 'query')
            )
        updates, state = update(
            from_nested_dict(
                params, {name: jnp.asarray(g, jnp.float32) for name, g in gradients.items()}
            ),
            state,
            params,
        )
        params = optax.apply_updates(params, updates)
    for name, value in to_nested_dict(params).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


def test_learning_rate_rises_linearly_and_decays_along_a_cosine():
    _, schedule = make_optimizer(**SETTINGS)
    expected = {0: 0, 1: 0.001, 5: 0.005, 10: 0.01, 55: (0.01 + 0.001) / 2, 100: 0.001, 500: 0.001}
    np.testing.assert_allclose(
        [schedule(step) for step in expected], list(expected.values()), atol=1e-8
    )
    rates = np.array([schedule(step) for step in range(10, 101)])
    np.testing.assert_allclose(
        rates, 0.001 + 0.009 * (1 + np.cos(np.pi * np.arange(91) / 90)) / 2, rtol=1e-5
    )


def test_learning_rate_decays_linearly():
    """With a final rate of 0 it equals get_linear_schedule_with_warmup of transformers."""
    _, schedule = make_optimizer(**SETTINGS | {'decay': 'linear', 'final_share': 0.0})
    expected = [0.01 * (step / 10 if step < 10 else (100 - step) / 90) for step in range(101)]
    np.testing.assert_allclose([schedule(step) for step in range(101)], expected, atol=1e-8)
    _, schedule = make_optimizer(**SETTINGS | {'decay': 'linear', 'warmup_steps': 0})
    np.testing.assert_allclose(
        [schedule(0), schedule(50), schedule(100), schedule(500)],
        [0.01, 0.0055, 0.001, 0.001],
        rtol=1e-5,
    )
    with pytest.raises(UserError, match="optimizer.decay='step': choose one of cosine, linear"):
        make_optimizer(**SETTINGS | {'decay': 'step'})


@pytest.mark.parametrize('warmup_steps', [-1, 100, 1000])
def test_warmup_longer_than_training_is_refused(warmup_steps):
    with pytest.raises(
        UserError, match=f'optimizer.warmup_steps={warmup_steps} must be less than train.steps=100'
    ):
        make_optimizer(**SETTINGS | {'warmup_steps': warmup_steps})


@pytest.mark.parametrize('clip_norm', [0, -1.0, float('nan')])
def test_clip_norm_that_is_not_positive_is_refused(clip_norm):
    with pytest.raises(UserError, match=f'optimizer.clip_norm={clip_norm}: must be above 0'):
        make_optimizer(**SETTINGS | {'clip_norm': clip_norm})


def make_batch() -> Batch:
    """Returns four pairs of equal texts, for which a larger scale always lowers the loss."""
    tokens = np.repeat(np.random.default_rng(0).integers(0, 20, (4, 4)), 2, axis=0)
    rows = np.stack([tokens, np.ones_like(tokens), np.arange(4) * np.ones((8, 1), int)])
    eos = (np.arange(8) * 4 + 3).reshape(4, 2)
    ids = np.arange(1, 9).reshape(4, 2)
    return Batch(*(np.asarray(array, np.int32)[None] for array in (*rows, eos, ids)))


def test_scale_is_clipped_to_100():
    optimizer, schedule = make_optimizer(
        **SETTINGS | {'warmup_steps': 0, 'peak_lr': 0.05, 'epsilon': 1e-8}
    )
    mesh = make_one_device_mesh()
    with jax.set_mesh(mesh):
        place = jax.NamedSharding(mesh, jax.P(None, ('data', 'fsdp')))
        batch = Batch(*(jax.device_put(array, place) for array in make_batch()[:5]))
        step = jax.jit(make_step(Contrastive(InfoNCE()), optimizer, schedule, 0))
        params = make_params(CONFIG)
        for start, end in [
            (3.0, 3.05),
            (4.58, MAX_LOG_SCALE),
            (MAX_LOG_SCALE, MAX_LOG_SCALE),
            (5.5, MAX_LOG_SCALE),
        ]:
            params.log_scale[...] = jax.device_put(
                np.float32(start), params.log_scale[...].sharding
            )
            state, metrics = step(
                TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), batch
            )
            np.testing.assert_allclose(state.params.log_scale[...], end, rtol=1e-5)
            np.testing.assert_allclose(metrics['scale'], math.exp(start), rtol=1e-5)
            assert metrics['tokens'] == 32 and metrics['pairs'] == 4 and metrics['accuracy_xy'] == 1
        assert float(jnp.exp(state.params.log_scale[...])) <= 100.0001
        constant = Contrastive(InfoNCE(initial_temperature=0.05, train_temperature=False))
        # It is neither taken from an earlier run nor changed, so a next run starts from it.
        assert constant.get_own_parameters(params) == {}
        fixed = jax.jit(
            make_step(
                constant,
                optimizer,
                schedule,
                0,
            )
        )
        # Another value, as in runs of earlier versions, is ignored.
        params.log_scale[...] = jax.device_put(np.float32(1.0), params.log_scale[...].sharding)
        state, metrics = fixed(
            TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), batch
        )
        np.testing.assert_allclose(
            [metrics['scale'], state.params.log_scale[...]], [20, 1], rtol=1e-5
        )
