"""What is known of a pod on this machine: enough to ask for it again and to go on with its run."""

import dataclasses
import json
from pathlib import Path

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically

PODS = Path('runs/pods')


@dataclasses.dataclass
class Pod:
    """A queued resource and the run on it, as kept in runs/pods/NAME.json."""

    name: str
    zone: str = ''
    project: str = ''
    # What create.py asked for.
    accelerator_type: str = ''
    type: str = ''
    topology: str = ''
    runtime_version: str = ''
    slices: int = 1
    spot: bool = False
    create_flags: list[str] = dataclasses.field(default_factory=list)
    ssh_flags: list[str] = dataclasses.field(default_factory=list)
    # What install.py brought.
    commit: str = ''
    bucket: str = ''
    mount: str = ''
    # What start.py gave to launch/train.py.
    train_flags: list[str] | None = None

    def file(self, suffix: str) -> Path:
        return PODS / f'{self.name}{suffix}'

    def save(self) -> None:
        PODS.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file('.json'), json.dumps(dataclasses.asdict(self), indent=2) + '\n')


def recorded(name: str) -> Pod | None:
    """The pod as an earlier command left it, or None."""
    path = Pod(name).file('.json')
    try:
        return Pod(**json.loads(path.read_text())) if path.exists() else None
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{path}: cannot be read ({error}); delete it and begin again with create.py'
        ) from error
