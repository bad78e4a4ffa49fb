"""TensorBoard event files."""

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class ScorePoint(NamedTuple):
    """The scores of one step.

    Attributes:
      step: training step.
      time: seconds since 1970.
      scores: score by name.
    """

    step: int
    time: float
    scores: Mapping[str, float]


def import_summary_writer() -> type:
    """Returns tensorboardX's SummaryWriter, imported without torch."""
    with _hide_torch():
        from tensorboardX import SummaryWriter

        return SummaryWriter


def write_points(path: Path, points: Sequence[ScorePoint]) -> None:
    """Makes an event file hold one event per point, in the order of `points`.

    Appends the events that the file lacks, also if the program that wrote the earlier ones was
    killed. All programs append to one file, because TensorBoard looks for new events only in the
    last file of a folder. The caller must prevent concurrent writes.

    Args:
      path: the event file; its name must contain 'tfevents'.
      points: the points of the earlier calls, followed by new ones. If there are fewer points than
        events in the file, the file is written again from the start.
    """
    with _hide_torch():
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    events = [Event(wall_time=points[0].time if points else 0, file_version='brain.Event:2')]
    for point in points:
        events.append(Event(wall_time=point.time, step=point.step))
        for name, score in point.scores.items():
            events[-1].summary.MergeFrom(scalar(name, score))
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = [0, *_find_record_ends(path.read_bytes() if path.exists() else b'')]
    written = len(ends) - 1
    if written > len(events):
        written = 0
    with path.open('ab') as file:
        file.truncate(ends[written])  # removes an incomplete event at the end
        records = [_encode_record(event.SerializeToString()) for event in events[written:]]
        file.write(b''.join(records))


def _encode_record(data: bytes) -> bytes:
    """Returns data as a TFRecord: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack('<Q', len(data))
    return (
        length
        + struct.pack('<I', masked_crc32c(length))
        + data
        + struct.pack('<I', masked_crc32c(data))
    )


def _find_record_ends(data: bytes) -> Iterator[int]:
    """Yields the offset after each complete record."""
    end = 0
    while end + 12 <= len(data):
        end += 16 + struct.unpack_from('<Q', data, end)[0]
        if end <= len(data):
            yield end


@contextmanager
def _hide_torch() -> Iterator[None]:
    """Hides torch from imports in the block.

    tensorboardX imports torch if it is installed, which takes 1.6 seconds; scalars do not need it.
    """
    # An entry None makes the import of that module fail (Python reference, "The module cache").
    modules: dict[str, Any] = sys.modules
    hidden = modules.setdefault('torch', None) is None
    try:
        yield
    finally:
        if hidden:
            del modules['torch']
