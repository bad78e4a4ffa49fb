"""Rows of a run in Weights & Biases (wandb), if the user asks for it and has installed it."""

import importlib
import importlib.util
import secrets
from collections.abc import Mapping
from typing import Any

from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically


class WandbRows:
    """Sends each recorded row to a run of Weights & Biases."""

    def __init__(self, project: str, directory: RunDir, config: Mapping[str, Any]):
        """Starts the run, or goes on with that of an earlier start.

        Args:
          project: name of the project.
          directory: the run's directory. It keeps the id of the wandb run.
          config: config of the run, which wandb shows.

        Raises:
          UserError: wandb is not installed.
        """
        if importlib.util.find_spec('wandb') is None:
            raise UserError(
                f'train.wandb={project!r}: wandb is not installed: pip install wandb, or set '
                f"train.wandb=''"
            )
        if directory.wandb_id.exists():
            identity = directory.wandb_id.read_text().strip()
        else:
            identity = secrets.token_hex(4)
            write_atomically(directory.wandb_id, identity + '\n')
        self._run = importlib.import_module('wandb').init(
            project=project,
            id=identity,
            name=directory.path.name,
            config=dict(config),
            resume='allow',
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Sends a row."""
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        """Sends what is left, and ends the run."""
        self._run.finish()
