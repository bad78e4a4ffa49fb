import dataclasses

import jax
import pytest

from cpt_jax.plan.estimate import (
    SweepCandidate,
    estimate_bytes,
    estimate_seconds,
    estimate_state_bytes,
)
from cpt_jax.plan.lowering import lower_training_step
from cpt_jax.plan.planning import Plan
from cpt_jax.plan.sweep import Sweep, apply_candidate, format_flags, list_candidates, sweep
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.hardware import CHIPS

V5E = CHIPS['v5e']


@pytest.fixture(scope='module')
def step(tiny):
    return lower_training_step(tiny(), jax.devices()[:1], trace=False)


def make_plan_of(
    candidate: SweepCandidate, fits: bool, size: int = 2**30, seconds: float = 1.0
) -> Plan:
    """Returns a made-up plan of a candidate."""
    missing = {field.name: None for field in dataclasses.fields(Plan)}
    chosen = {
        'mesh': {'data': candidate.data, 'fsdp': candidate.fsdp, 'tensor': candidate.tensor},
        'remat': candidate.remat,
        'encode_chunks': candidate.chunks,
    }
    measured = {
        'loss_form': candidate.form,
        'fits': fits,
        'hbm_bytes_per_chip': size,
        'lower_bound_seconds': seconds if fits else None,
    }
    return Plan(**(missing | chosen | measured))


def test_candidates_are_all_that_model_batch_and_slices_allow(step):
    found = list(list_candidates(step, 8, 1, V5E))
    assert len(found) == len(set(found))
    meshes = {(candidate.data, candidate.fsdp, candidate.tensor) for candidate in found}
    # Two heads.
    assert meshes == {
        (d, f, t) for t in (1, 2) for f in (1, 2, 4, 8) for d in (1, 2, 4, 8) if d * f * t == 8
    }
    assert {candidate.remat for candidate in found} == {'none', 'dots', 'full'} and {
        candidate.form for candidate in found
    } == {'dense'}
    # 64 pairs.
    assert {
        candidate.chunks for candidate in found if (candidate.data, candidate.fsdp) == (8, 1)
    } == {1, 2, 4, 8}
    assert {candidate.data % 2 for candidate in list_candidates(step, 8, 2, V5E)} == {0}


def test_large_batches_have_candidates_with_both_forms_of_the_loss(tiny):
    large = lower_training_step(
        tiny(**{'train.batch_pairs': 65_536}), jax.devices()[:1], trace=False
    )
    assert {candidate.form for candidate in list_candidates(large, 8, 1, V5E)} == {
        'dense',
        'chunked',
    }


def test_estimates_rise_and_fall_with_each_setting(step):
    base = SweepCandidate(4, 2, 1, 'dots', 2, 'dense')
    layout = step.layout

    def memory(**changes) -> float:
        candidate = dataclasses.replace(base, **changes)
        return estimate_bytes(
            candidate,
            step.encoder_config,
            layout,
            step.parameters,
            estimate_state_bytes(candidate, step.parameters),
        )

    def seconds(**changes) -> float:
        return estimate_seconds(
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
    assert estimate_state_bytes(base, 1000) == 8000
    assert estimate_state_bytes(base, 1000, 516) == 8000 + 516 // 2


def test_candidates_whose_state_does_not_fit_are_skipped(step):
    small = dataclasses.replace(
        V5E,
        hbm_limit=estimate_state_bytes(
            SweepCandidate(4, 2, 1, 'none', 1, 'dense'), step.parameters
        ),
    )
    search, everything = Sweep(step, 8, 1, small), len(list(list_candidates(step, 8, 1, small)))
    assert 0 < search.skipped < everything and search.left == everything - search.skipped
    while search.left:
        candidate = search.take()
        assert candidate.fsdp * candidate.tensor >= 2


def test_compiled_candidates_rule_out_others_of_their_mesh(step):
    search = Sweep(step, 8, 1, V5E)
    first = search.take()
    # Without recomputation, because all are estimated to fit.
    assert (first.remat, first.chunks) == ('none', 1)
    before = search.left
    search.learn(first, make_plan_of(first, fits=True))
    # Drops all others of its mesh, because they are more frugal and slower.
    assert search.dropped > 0 and search.left == before - search.dropped
    assert not any(
        (candidate.data, candidate.fsdp, candidate.tensor) == (first.data, first.fsdp, first.tensor)
        for candidate in take_all(search)
    )

    search = Sweep(step, 8, 1, V5E)
    middle = SweepCandidate(8, 1, 1, 'dots', 2, 'dense')
    search.learn(middle, make_plan_of(middle, fits=False, size=20 * 2**30))
    left = {
        (candidate.remat, candidate.chunks) for candidate in take_all(search) if candidate.data == 8
    }
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


def take_all(search: Sweep) -> list[SweepCandidate]:
    return [search.take() for _ in range(search.left)]


def test_memory_estimate_that_was_too_low_is_corrected(step):
    """If a candidate needs far more memory than estimated, all candidates with its remat
    policy move to the end.
    """
    search = Sweep(step, 8, 1, V5E)
    first = search.take()
    search.learn(first, make_plan_of(first, fits=False, size=10**15))
    order = take_all(search)
    assert order[-1].remat == 'none' and order[0].remat != 'none'


def test_flags_are_the_planned_settings(tiny):
    candidate = SweepCandidate(4, 2, 1, 'dots', 2, 'chunked')
    changed = apply_candidate(tiny(), candidate)
    flags = format_flags(make_plan_of(candidate, fits=True)).split()
    assert len(flags) == 6
    for flag in flags:
        key, value = flag.removeprefix('--config.').split('=')
        section, name = key.split('.')
        assert str(changed[section][name]) == value


def test_invalid_arguments_are_refused(tiny, libtpu):
    with pytest.raises(UserError, match='--sweep_limit=0'):
        sweep(tiny(), 'v5e:2x2', 1, 0, print)
    with pytest.raises(UserError, match='mesh.dato'):
        sweep(tiny() | {'mesh': {'dato': 1}}, 'v5e:2x2', 1, 1, print)
