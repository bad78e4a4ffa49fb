"""TensorBoard event files."""

import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.storage.growing_file import GrowingFile
from cpt_jax.storage.paths import is_on_bucket


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


class EventWriter:
    """Appends the rows of one start of a program to an event file of its own."""

    def __init__(self, folder: Path, first_step: int):
        """Creates the folder and the file.

        Args:
          folder: folder of all event files of a run.
          first_step: first step of this start. TensorBoard drops the rows of earlier files from
            this step on.
        """
        with _hide_torch():
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        folder.mkdir(parents=True, exist_ok=True)
        name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}'
        self._file = GrowingFile(folder / name)
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), file_version='brain.Event:2'))
        self._append(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write_row(self, step: int, row: Mapping[str, float]) -> None:
        """Appends an event with the values of a row."""
        self._append(_make_event(ScorePoint(step, time.time(), row)))

    def write(self) -> None:
        """Writes the events that wait."""
        self._file.write()

    def _append(self, event: Any) -> None:
        self._file.append(_encode_record(event.SerializeToString()))


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
    first = Event(wall_time=points[0].time if points else 0, file_version='brain.Event:2')
    events = [first, *map(_make_event, points)]
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.exists() else b''
    ends = [0, *_find_record_ends(old)]
    written = len(ends) - 1
    if written > len(events):
        written = 0
    new = b''.join(_encode_record(event.SerializeToString()) for event in events[written:])
    if is_on_bucket(path):
        path.write_bytes(old[: ends[written]] + new)
        return
    with path.open('ab') as file:
        file.truncate(ends[written])  # removes an incomplete event at the end
        file.write(new)


def _make_event(point: ScorePoint) -> Any:
    with _hide_torch():
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    event = Event(wall_time=point.time, step=point.step)
    for name, score in point.scores.items():
        event.summary.MergeFrom(scalar(name, score))
    return event


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
