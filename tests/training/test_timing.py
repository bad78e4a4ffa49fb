import jax
import pytest

from cpt_jax.training import timing
from cpt_jax.training.timing import Clock, StepTimes


@pytest.fixture
def now(monkeypatch):
    """A list whose only element is the time that the clock reads, in seconds."""
    seconds = [100.0]
    monkeypatch.setattr('cpt_jax.training.timing.time.perf_counter', lambda: seconds[0])
    return seconds


def test_pauses_do_not_count_as_training(now):
    clock = Clock()
    now[0] += 5
    with clock.pause('compile'):
        now[0] += 7
    now[0] += 1
    assert (clock.trained, clock.paused) == (6, 7)
    with clock.pause('save'):
        now[0] += 2
    assert clock.make_row() == {
        'seconds': 6,
        'paused_seconds': 9,
        'compile_seconds': 7,
        'evaluate_seconds': 0,
        'save_seconds': 2,
        'goodput': 6 / 15,
    }


def test_clock_of_a_resumed_run_starts_from_earlier_times(now):
    # Rows of older runs have no kinds.
    row = {'step': 3, 'seconds': 40.0, 'paused_seconds': 30.0, 'save_seconds': 4.0}
    # An evaluation that was repeated after a stop has a row without times.
    clock = Clock([{'step': 2, 'seconds': 20.0}, row, {'step': 3, 'heldout_mrr': 0.5}])
    assert (clock.trained, clock.paused) == (40, 30)
    now[0] += 5
    with clock.pause('save'):
        now[0] += 7
    assert (clock.trained, clock.paused) == (45, 37)
    assert clock.make_row()['save_seconds'] == 11


def test_row_has_the_slowest_step_and_the_time_without_data(now):
    clock = Clock()
    times = StepTimes(clock)
    for seconds, waited in ((2, 1), (6, 3), (3, 1)):
        with times.wait_for_data():
            now[0] += waited
        now[0] += seconds - waited
        with clock.pause('evaluate'):
            now[0] += 50
        times.end_step()
    assert times.take_row() == {'data_wait_seconds': 5, 'step_seconds_max': 6}
    now[0] += 4
    times.end_step()
    assert times.take_row() == {'data_wait_seconds': 0, 'step_seconds_max': 4}


def test_row_names_the_process_that_waited_longest(now, monkeypatch):
    published = {}
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    monkeypatch.setattr(timing, 'publish_host_seconds', lambda own: published.update({0: own}))
    monkeypatch.setattr(timing, 'read_host_seconds', lambda: published | {1: 0.5, 2: 4.0})
    times = StepTimes(Clock())
    with times.wait_for_data():
        now[0] += 1
    row = times.take_row()
    assert (row['slowest_process'], row['slowest_data_wait_seconds']) == (2, 4.0)
    assert published == {0: 1.0}
