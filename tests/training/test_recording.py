"""The records of a run: how they are written, and how a resumed run continues them."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.training.recording import Recorder, drop_rows_after


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def read_points(workdir) -> set[tuple[str, int, float]]:
    """Returns the points (name, step, value) of all curves in TensorBoard's files.

    A file is a sequence of records: length (8 bytes), its checksum (4), event, its checksum (4).
    """
    points = set()
    for path in (workdir / 'tensorboard').iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event = Event.FromString(data[12 : 12 + length])
            points |= {(value.tag, event.step, value.simple_value) for value in event.summary.value}
            data = data[16 + length :]
    return points


def test_damaged_lines_in_the_middle_are_reported_and_the_rest_is_kept(tmp_path, capsys):
    path = tmp_path / 'metrics.jsonl'
    lines = [
        b'{"step": 1, "loss": 2.0}', b'', b'\xff\xfe', b'{"step": 2, "lo', b'3', b'{"a": 1}',
        b'{"step": "3"}', b'{"step": 4, "loss": 1.0, "note": "x"}', b'{"step": 9}', b'\xe9',
    ]  # fmt: skip
    path.write_bytes(b'\n'.join(lines))
    kept = [{'step': 1, 'loss': 2.0}, {'step': 4, 'loss': 1.0}]
    assert drop_rows_after(path, 8) == kept
    assert read_rows(tmp_path) == [kept[0], {**kept[1], 'note': 'x'}]
    line = f'{path}: 5 lines are no rows of metrics (first: line 3); the others are used\n'
    assert capsys.readouterr().out == line
    assert drop_rows_after(path, 8) == kept
    assert capsys.readouterr().out == ''


def test_rows_of_later_steps_and_an_incomplete_line_are_dropped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    rows = [{'step': step, 'loss': 1 / step} for step in range(2, 12, 2)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"step": 12, "lo')
    assert drop_rows_after(path, 11) == rows and read_rows(tmp_path) == rows
    assert drop_rows_after(path, 7) == rows[:3] and read_rows(tmp_path) == rows[:3]
    assert drop_rows_after(path, 6) == rows[:3] and read_rows(tmp_path) == rows[:3]
    assert drop_rows_after(path, 1) == [] and path.read_text() == ''
    assert drop_rows_after(path, 1) == []
    assert (
        drop_rows_after(tmp_path / 'other.jsonl', 5) == []
        and not (tmp_path / 'other.jsonl').exists()
    )
    assert [file.name for file in tmp_path.iterdir()] == ['metrics.jsonl']


def test_last_line_without_newline_and_values_that_are_not_finite_are_kept(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}'
    )
    assert drop_rows_after(tmp_path / 'metrics.jsonl', 5)[-1] == {'step': 2, 'loss': float('inf')}
    assert (
        tmp_path / 'metrics.jsonl'
    ).read_text() == '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n'


def test_row_is_written_to_metrics_jsonl_and_tensorboard(tmp_path):
    records = Recorder(RunDir(tmp_path), 0, 10, is_writer=True)
    assert records.earlier == []
    records.write(1, {'loss': 2.5, 'accuracy_xy': 0.25})
    # Written immediately, not when the recorder is closed.
    assert read_rows(tmp_path) == [{'step': 1, 'loss': 2.5, 'accuracy_xy': 0.25}]
    records.write(2, {'loss': 1.5})
    records.print_line('a line')
    records.close()
    assert read_rows(tmp_path)[1:] == [{'step': 2, 'loss': 1.5}]
    assert (tmp_path / 'train.log').read_text().endswith(' a line\n')
    assert read_points(tmp_path) == {('loss', 1, 2.5), ('accuracy_xy', 1, 0.25), ('loss', 2, 1.5)}


def test_records_continue_after_the_step_of_the_checkpoint(tmp_path):
    for first, last, loss in [(0, 6, 2.0), (4, 8, 1.0)]:
        records = Recorder(RunDir(tmp_path), first, 8, is_writer=True)
        for step in range(first + 1, last + 1):
            records.write(step, {'loss': loss, 'seconds': 10.0 * step})
        records.close()
    assert [(row['step'], row['loss']) for row in read_rows(tmp_path)] == [
        (step, 2.0 if step <= 4 else 1.0) for step in range(1, 9)
    ]
    again = Recorder(RunDir(tmp_path), 8, 8, is_writer=True)
    assert again.earlier[-1] == {'step': 8, 'loss': 1.0, 'seconds': 80.0}
    again.close()


def test_only_the_writer_writes_and_prints(tmp_path, capsys):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 9}\n')
    records = Recorder(RunDir(tmp_path), 0, 10, is_writer=False)
    records.write(1, {'loss': 2.5})
    records.advance(1)
    records.print_line('a line')
    records.close()
    assert records.earlier == [] and (tmp_path / 'metrics.jsonl').read_text() == '{"step": 9}\n'
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']
    assert capsys.readouterr() == ('', '')


def test_without_a_terminal_progress_lines_are_printed_at_intervals(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr('cpt_jax.training.recording.time.monotonic', lambda: now[0])
    records = Recorder(RunDir(tmp_path), 0, 2000, is_writer=True)
    row = {'tokens_per_second': 9e5, 'padding_share': 0.031, 'seconds': 600.0, 'dropped_pairs': 0.0}
    for step, now[0] in [(400, 29.0), (450, 31.0), (500, 32.0), (1000, 62.0), (2000, 63.0)]:
        records.show_progress(step, row, 'loss 2.500')
    records.print_line('saved')
    records.close()
    first, second, end, last = capsys.readouterr().out.splitlines()
    assert first.startswith('step 450 of 2,000: loss 2.500, 900,000 tokens/s, padding 3.1%, ')
    assert (
        second.startswith('step 1,000 of 2,000: ')
        and second.endswith(', 10 min left')
        and last == 'saved'
    )
    assert end.startswith('step 2,000 of 2,000: ')
