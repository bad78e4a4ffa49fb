"""TensorBoard's event files."""

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """Scores of one step; `time` in seconds since 1970."""

    step: int
    time: float
    scores: Mapping[str, float]


def summary_writer() -> type:
    """tensorboardX's SummaryWriter."""
    with _without_torch():
        from tensorboardX import SummaryWriter

        return SummaryWriter


def write_points(path: Path, points: Sequence[Point]) -> None:
    """Brings an event file up to date: it holds an event for each of the points, in their order,
    whoever wrote those before and was killed.

    One file that grows, and not one for each program: TensorBoard looks for new points in the last
    file of a folder alone. The caller keeps other programs from writing meanwhile.

    Args:
      path: with 'tfevents' in its name.
      points: those that an earlier call had, and after them new ones. Fewer than the file has: it
        is written anew.
    """
    with _without_torch():
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    events = [Event(wall_time=points[0].time if points else 0, file_version='brain.Event:2')]
    for point in points:
        events.append(Event(wall_time=point.time, step=point.step))
        for name, score in point.scores.items():
            events[-1].summary.MergeFrom(scalar(name, score))
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = [0, *_ends(path.read_bytes() if path.exists() else b'')]
    there = len(ends) - 1 if len(ends) - 1 <= len(events) else 0
    with path.open('ab') as file:
        file.truncate(ends[there])  # an event that was cut short
        file.write(b''.join(_record(event.SerializeToString()) for event in events[there:]))


def _record(data: bytes) -> bytes:
    """TFRecord: the length, its checksum, the data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack('<Q', len(data))
    return (
        length
        + struct.pack('<I', masked_crc32c(length))
        + data
        + struct.pack('<I', masked_crc32c(data))
    )


def _ends(data: bytes) -> Iterator[int]:
    """Where each whole record ends."""
    end = 0
    while end + 12 <= len(data):
        end += 16 + struct.unpack_from('<Q', data, end)[0]
        if end <= len(data):
            yield end


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports torch where it can: 1.6 seconds of a start, and curves need none."""
    modules: dict[str, Any] = sys.modules  # None: an import fails, as the docs of `import` say
    hidden = modules.setdefault('torch', None) is None
    try:
        yield
    finally:
        if hidden:
            del modules['torch']
