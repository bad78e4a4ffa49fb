"""TensorBoard event files."""

import struct

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from cpt_jax.storage.event_files import ScorePoint, write_points

POINTS = [
    ScorePoint(step, 1000.0 + step, {'sts/a/spearman': step / 10, 'retrieval/b/ndcg@10': 0.5})
    for step in (10, 20, 15)
]


def events(data: bytes) -> list[Event]:
    """Reads records of: length, checksum, event, checksum."""
    found = []
    while data:
        (length,) = struct.unpack('<Q', data[:8])
        assert len(data) >= 16 + length
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_file_has_one_event_per_point_as_written_by_tensorboardx(tmp_path):
    path = tmp_path / 'eval' / 'events.tfevents'
    write_points(path, POINTS)
    first, *rest = found = events(path.read_bytes())
    assert first.file_version == 'brain.Event:2'
    assert [(event.step, event.wall_time) for event in rest] == [(10, 1010), (20, 1020), (15, 1015)]
    assert [(value.tag, round(value.simple_value, 6)) for value in rest[0].summary.value] == [
        ('sts/a/spearman', 1),
        ('retrieval/b/ndcg_10', 0.5),
    ]
    writer = RecordWriter(str(tmp_path / 'reference'))
    for event in found:
        writer.write(event.SerializeToString())
    writer.close()
    assert (tmp_path / 'reference').read_bytes() == path.read_bytes()


def test_truncated_or_shorter_file_is_completed(tmp_path):
    path = tmp_path / 'tfevents'
    write_points(path, POINTS)
    whole = path.read_bytes()
    for cut in range(0, len(whole) + 1, 7):  # as if the writer was killed after `cut` bytes
        path.write_bytes(whole[:cut])
        write_points(path, POINTS)
        assert path.read_bytes() == whole
    # With fewer points than events, the file is written again; then it grows point by point.
    for count in (1, 2, 3):
        write_points(path, POINTS[:count])
        assert len(events(path.read_bytes())) == 1 + count
    assert path.read_bytes() == whole
