"""The local record of a pod: enough to request it again and to resume its run."""

import dataclasses
import json
import re
from pathlib import Path

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically

PODS = Path('runs/pods')


@dataclasses.dataclass
class Pod:
    """A queued resource and the run on it, as recorded in runs/pods/NAME.json."""

    name: str
    zone: str = ''
    project: str = ''
    # Set by create.py, which requests the resource.
    accelerator_type: str = ''
    type: str = ''
    topology: str = ''
    runtime_version: str = ''
    slices: int = 1
    spot: bool = False
    # Release track of the gcloud create command: '', alpha or beta. Some flags are in one only.
    track: str = ''
    create_flags: list[str] = dataclasses.field(default_factory=list)
    ssh_flags: list[str] = dataclasses.field(default_factory=list)
    # Set by install.py.
    commit: str = ''
    bucket: str = ''
    mount: str = ''
    # Set by start.py: the program in launch/, its environment variables as NAME=VALUE, and its
    # flags, which are None before the first start.
    program: str = 'train'
    environment: list[str] = dataclasses.field(default_factory=list)
    program_flags: list[str] | None = None

    def get_path(self, suffix: str) -> Path:
        """Returns the path of the pod's local file with this suffix."""
        return PODS / f'{self.name}{suffix}'

    def save(self) -> None:
        """Writes the record."""
        PODS.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=2) + '\n'
        write_atomically(self.get_path('.json'), text)


def check_name(name: str) -> None:
    """Raises UserError if Google Cloud would not accept a name, which is also that of a file and an
    argument of gcloud.
    """
    if not re.fullmatch(r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?', name):
        raise UserError(
            f'--name {name!r}: must be lowercase letters, digits and -, from a letter to a letter '
            f'or digit, at most 63'
        )


def load_record(name: str) -> Pod | None:
    """Returns the recorded pod, or None if there is no record.

    Raises:
      UserError: the name cannot be that of a pod, or the record cannot be read.
    """
    check_name(name)
    path = Pod(name).get_path('.json')
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if 'train_flags' in record:  # the name when start.py could start train.py only
            record['program_flags'] = record.pop('train_flags')
        return Pod(**record)
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{path}: cannot be read ({error}); delete it and start again with create.py'
        ) from error
