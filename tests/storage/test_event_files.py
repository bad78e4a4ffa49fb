"""TensorBoard's event files."""

import struct

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from cpt_jax.storage.event_files import Point, write_points

POINTS = [
    Point(step, 1000.0 + step, {'sts/a/spearman': step / 10, 'retrieval/b/ndcg@10': 0.5})
    for step in (10, 20, 15)
]


def events(data: bytes) -> list[Event]:
    """Records of a length, its checksum, an event, its checksum."""
    found = []
    while data:
        (length,) = struct.unpack('<Q', data[:8])
        assert len(data) >= 16 + length
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_an_event_a_point_in_tensorboards_own_form(tmp_path):
    path = tmp_path / 'eval' / 'events.tfevents'
    write_points(path, POINTS)
    first, *rest = found = events(path.read_bytes())
    assert first.file_version == 'brain.Event:2'
    assert [(event.step, event.wall_time) for event in rest] == [(10, 1010), (20, 1020), (15, 1015)]
    assert [(value.tag, round(value.simple_value, 6)) for value in rest[0].summary.value] == [
        ('sts/a/spearman', 1),
        ('retrieval/b/ndcg_10', 0.5),
    ]
    writer = RecordWriter(str(tmp_path / 'theirs'))
    for event in found:
        writer.write(event.SerializeToString())
    writer.close()
    assert (tmp_path / 'theirs').read_bytes() == path.read_bytes()


def test_whatever_was_written_before_the_file_ends_as_if_written_at_once(tmp_path):
    path = tmp_path / 'tfevents'
    write_points(path, POINTS)
    whole = path.read_bytes()
    for cut in range(0, len(whole) + 1, 7):  # killed there
        path.write_bytes(whole[:cut])
        write_points(path, POINTS)
        assert path.read_bytes() == whole
    for count in (1, 2, 3):  # and grown point by point; fewer than there are begin anew
        write_points(path, POINTS[:count])
        assert len(events(path.read_bytes())) == 1 + count
    assert path.read_bytes() == whole
