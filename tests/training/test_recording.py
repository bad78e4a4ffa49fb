"""What a run writes down, and goes on with."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.training.recording import Clock, Recorder, keep_rows


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def points(workdir) -> set[tuple[str, int, float]]:
    """The points of all curves in TensorBoard's files: records of a length, its checksum, an event,
    its checksum.
    """
    found = set()
    for path in (workdir / 'tensorboard').iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found |= {(value.tag, event.step, value.simple_value) for value in event.summary.value}
            data = data[16 + length :]
    return found


@pytest.fixture
def now(monkeypatch):
    """A clock's hands."""
    hands = [100.0]
    monkeypatch.setattr('cpt_jax.training.recording.time.perf_counter', lambda: hands[0])
    return hands


def test_pauses_are_not_training(now):
    clock = Clock()
    now[0] += 5
    with clock.pause():
        now[0] += 7
    now[0] += 1
    assert (clock.trained, clock.paused) == (6, 7)
    with clock.pause():
        now[0] += 2
    assert (clock.trained, clock.paused) == (6, 9)


def test_a_clock_goes_on_from_the_part_before(now):
    clock = Clock(40.0, 30.0)
    assert (clock.trained, clock.paused) == (40, 30)
    now[0] += 5
    with clock.pause():
        now[0] += 7
    assert (clock.trained, clock.paused) == (45, 37)


def test_rows_of_later_steps_and_a_line_cut_short_go(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    rows = [{'step': step, 'loss': 1 / step} for step in range(2, 12, 2)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"step": 12, "lo')
    assert keep_rows(path, 11) == rows[-1] and read_rows(tmp_path) == rows
    assert keep_rows(path, 7) == rows[2] and read_rows(tmp_path) == rows[:3]
    assert keep_rows(path, 6) == rows[2] and read_rows(tmp_path) == rows[:3]
    assert keep_rows(path, 1) == {} and path.read_text() == ''
    assert keep_rows(path, 1) == {}
    assert keep_rows(tmp_path / 'other.jsonl', 5) == {} and not (tmp_path / 'other.jsonl').exists()
    assert [file.name for file in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_line_without_its_end_and_values_that_are_no_numbers_stay(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}'
    )
    assert keep_rows(tmp_path / 'metrics.jsonl', 5) == {'step': 2, 'loss': float('inf')}
    assert (
        tmp_path / 'metrics.jsonl'
    ).read_text() == '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n'


def test_a_row_is_a_line_and_a_point_of_each_curve(tmp_path):
    records = Recorder(RunDir(tmp_path), 0, 10, writing=True)
    assert records.last == {}
    records.write(1, {'loss': 2.5, 'accuracy_xy': 0.25})
    # At once, not at the end.
    assert read_rows(tmp_path) == [{'step': 1, 'loss': 2.5, 'accuracy_xy': 0.25}]
    records.write(2, {'loss': 1.5})
    records.close()
    assert read_rows(tmp_path)[1:] == [{'step': 2, 'loss': 1.5}]
    assert points(tmp_path) == {('loss', 1, 2.5), ('accuracy_xy', 1, 0.25), ('loss', 2, 1.5)}


def test_records_go_on_after_the_step_of_the_checkpoint(tmp_path):
    for first, upto, loss in [(0, 6, 2.0), (4, 8, 1.0)]:
        records = Recorder(RunDir(tmp_path), first, 8, writing=True)
        for step in range(first + 1, upto + 1):
            records.write(step, {'loss': loss, 'seconds': 10.0 * step})
        records.close()
    assert [(row['step'], row['loss']) for row in read_rows(tmp_path)] == [
        (step, 2.0 if step <= 4 else 1.0) for step in range(1, 9)
    ]
    again = Recorder(RunDir(tmp_path), 8, 8, writing=True)
    assert again.last == {'step': 8, 'loss': 1.0, 'seconds': 80.0}
    again.close()


def test_only_the_writing_process_writes_and_speaks(tmp_path, capsys):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 9}\n')
    records = Recorder(RunDir(tmp_path), 0, 10, writing=False)
    records.write(1, {'loss': 2.5})
    records.advance(1)
    records.say('a line')
    records.close()
    assert records.last == {} and (tmp_path / 'metrics.jsonl').read_text() == '{"step": 9}\n'
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']
    assert capsys.readouterr() == ('', '')


def test_where_there_is_no_terminal_a_line_tells_the_speed_at_times(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr('cpt_jax.training.recording.time.monotonic', lambda: now[0])
    records = Recorder(RunDir(tmp_path), 0, 2000, writing=True)
    row = {'tokens_per_second': 9e5, 'padding_share': 0.031, 'seconds': 600.0, 'dropped_pairs': 0.0}
    for step, now[0] in [(400, 29.0), (450, 31.0), (500, 32.0), (1000, 62.0), (2000, 63.0)]:
        records.show(step, row, 'loss 2.500')
    records.say('saved')
    records.close()
    first, second, end, last = capsys.readouterr().out.splitlines()
    assert first.startswith('step 450 of 2,000: loss 2.500, 900,000 tokens/s, padding 3.1%, ')
    assert (
        second.startswith('step 1,000 of 2,000: ')
        and second.endswith(', 10 min left')
        and last == 'saved'
    )
    assert end.startswith('step 2,000 of 2,000: ')
