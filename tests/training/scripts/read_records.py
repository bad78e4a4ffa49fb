"""Reads the records of a run again and again, as a user's dashboard does, until a file `stop`
exists. Prints JSON: when each row was first seen, and the bytes that were read last.

Arguments: the run's directory, and the path of `stop`.
"""

import json
import sys
import time
from pathlib import Path

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.paths import as_path
from tests.storage.test_event_files import events as read_events

run = RunDir(as_path(sys.argv[1]))
rows: dict[int, float] = {}
events: dict[int, tuple[float, float]] = {}
content: dict[str, bytes] = {}
is_last = False
while not is_last:
    is_last = Path(sys.argv[2]).exists()
    found = [*run.tensorboard.iterdir()] if run.tensorboard.is_dir() else []
    for path in [run.metrics, *found]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        assert data.startswith(content.get(path.name, b'')), f'{path} has lost what was read'
        content[path.name] = data
        now = time.time()
        if path == run.metrics:
            for line in data.decode().splitlines(keepends=True):
                assert line.endswith('\n'), f'an incomplete row: {line}'
                rows.setdefault(json.loads(line)['step'], now)
        else:
            for event in read_events(data):
                if event.summary.value:
                    events.setdefault(event.step, (now, event.wall_time))
    time.sleep(0.1)
print(json.dumps({'rows': rows, 'events': events, 'bytes': sum(map(len, content.values()))}))
