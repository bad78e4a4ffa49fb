import dataclasses

import jax
import pytest

from cpt_jax.plan.estimate import SweepCandidate, guess_bytes, guess_seconds, state_bytes
from cpt_jax.plan.lowering import lower
from cpt_jax.plan.planning import Plan
from cpt_jax.plan.sweep import Sweep, candidates, flags_of, sweep, with_candidate
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import CHIPS

V5E = CHIPS['v5e']


@pytest.fixture(scope='module')
def step(tiny):
    return lower(tiny(), jax.devices()[:1], trace=False)


def plan_of(one: SweepCandidate, fits: bool, size: int = 2**30, seconds: float = 1.0) -> Plan:
    """A plan as the compiler might have given it."""
    missing = {field.name: None for field in dataclasses.fields(Plan)}
    chosen = {
        'mesh': {'data': one.data, 'fsdp': one.fsdp, 'tensor': one.tensor},
        'remat': one.remat,
        'encode_chunks': one.chunks,
    }
    measured = {
        'loss_form': one.form,
        'fits': fits,
        'hbm_bytes_per_chip': size,
        'lower_bound_seconds': seconds if fits else None,
    }
    return Plan(**(missing | chosen | measured))


def test_candidates_are_what_model_batch_and_slices_allow(step):
    found = list(candidates(step, 8, 1, V5E))
    assert len(found) == len(set(found))
    meshes = {(one.data, one.fsdp, one.tensor) for one in found}
    # Two heads.
    assert meshes == {
        (d, f, t) for t in (1, 2) for f in (1, 2, 4, 8) for d in (1, 2, 4, 8) if d * f * t == 8
    }
    assert {one.remat for one in found} == {'none', 'dots', 'full'} and {
        one.form for one in found
    } == {'dense'}
    # 64 pairs.
    assert {one.chunks for one in found if (one.data, one.fsdp) == (8, 1)} == {1, 2, 4, 8}
    assert {one.data % 2 for one in candidates(step, 8, 2, V5E)} == {0}


def test_large_batches_are_tried_with_both_forms_of_the_loss(tiny):
    large = lower(tiny(**{'train.batch_pairs': 65_536}), jax.devices()[:1], trace=False)
    assert {one.form for one in candidates(large, 8, 1, V5E)} == {'dense', 'chunked'}


def test_guesses_go_the_right_way(step):
    base = SweepCandidate(4, 2, 1, 'dots', 2, 'dense')
    layout = step.layout

    def memory(**changes) -> float:
        one = dataclasses.replace(base, **changes)
        return guess_bytes(
            one, step.encoder_config, layout, step.parameters, state_bytes(one, step.parameters)
        )

    def seconds(**changes) -> float:
        return guess_seconds(
            dataclasses.replace(base, **changes),
            step.encoder_config,
            layout,
            step.parameters,
            step.model_flops,
            V5E,
        )

    assert memory(remat='full') < memory() < memory(remat='none')
    assert memory(data=1, fsdp=8) < memory() < memory(data=8, fsdp=1)
    assert memory(form='chunked') < memory()
    assert seconds(remat='none') < seconds() < seconds(remat='full')
    assert seconds(chunks=1) < seconds()
    assert state_bytes(base, 1000) == 8000
    assert state_bytes(base, 1000, 516) == 8000 + 516 // 2


def test_what_cannot_hold_the_state_is_skipped(step):
    small = dataclasses.replace(
        V5E, hbm_limit=state_bytes(SweepCandidate(4, 2, 1, 'none', 1, 'dense'), step.parameters)
    )
    search, everything = Sweep(step, 8, 1, small), len(list(candidates(step, 8, 1, small)))
    assert 0 < search.skipped < everything and search.left == everything - search.skipped
    while search.left:
        one = search.take()
        assert one.fsdp * one.tensor >= 2


def test_compiled_ones_drop_others_of_their_mesh(step):
    search = Sweep(step, 8, 1, V5E)
    first = search.take()
    # Nothing is computed twice where all is thought to fit.
    assert (first.remat, first.chunks) == ('none', 1)
    before = search.left
    search.learn(first, plan_of(first, fits=True))
    # All others of its mesh: they are more frugal.
    assert search.dropped > 0 and search.left == before - search.dropped
    assert not any(
        (one.data, one.fsdp, one.tensor) == (first.data, first.fsdp, first.tensor)
        for one in taken(search)
    )

    search = Sweep(step, 8, 1, V5E)
    middle = SweepCandidate(8, 1, 1, 'dots', 2, 'dense')
    search.learn(middle, plan_of(middle, fits=False, size=20 * 2**30))
    left = {(one.remat, one.chunks) for one in taken(search) if one.data == 8}
    assert left == {
        ('none', 4),
        ('none', 8),
        ('dots', 4),
        ('dots', 8),
        ('full', 1),
        ('full', 2),
        ('full', 4),
        ('full', 8),
    }


def taken(search: Sweep) -> list[SweepCandidate]:
    return [search.take() for _ in range(search.left)]


def test_a_guess_that_was_too_low_is_corrected(step):
    """What takes far more than was thought moves to the end, with all of its policy."""
    search = Sweep(step, 8, 1, V5E)
    first = search.take()
    search.learn(first, plan_of(first, fits=False, size=10**15))
    order = taken(search)
    assert order[-1].remat == 'none' and order[0].remat != 'none'


def test_flags_are_what_was_planned(tiny):
    one = SweepCandidate(4, 2, 1, 'dots', 2, 'chunked')
    changed = with_candidate(tiny(), one)
    flags = flags_of(plan_of(one, fits=True)).split()
    assert len(flags) == 6
    for flag in flags:
        key, value = flag.removeprefix('--config.').split('=')
        section, name = key.split('.')
        assert str(changed[section][name]) == value


def test_mistakes(tiny, libtpu):
    with pytest.raises(UserError, match='--sweep_limit=0'):
        sweep(tiny(), 'v5e:2x2', 1, 0, print)
    with pytest.raises(UserError, match='mesh.dato'):
        sweep(tiny() | {'mesh': {'dato': 1}}, 'v5e:2x2', 1, 1, print)
