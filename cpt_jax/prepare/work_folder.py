"""The folder `_work` of an output directory: what the stages hand on to each other."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cpt_jax.storage.atomic_write import open_atomically

FOLDER = '_work'


@dataclasses.dataclass(frozen=True)
class WorkFolder:
    """Paths of the files of the stages.

    Attributes:
      output: the output directory.
    """

    output: Path

    @property
    def root(self) -> Path:
        return self.output / FOLDER

    def get_path(self, stage: str, rank: int, suffix: str) -> Path:
        """Returns the path of a file that a task of a stage writes; creates its folder."""
        folder = self.root / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f'{rank:05d}{suffix}'


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file atomically."""
    with open_atomically(path) as file:
        np.save(file, array, allow_pickle=False)


def save_parts(path: Path, rows: np.ndarray, bounds: np.ndarray) -> None:
    """Writes rows that are sorted by part.

    Args:
      path: path of the .npy file.
      rows: the rows.
      bounds: int64[parts + 1]: `rows[bounds[p] : bounds[p + 1]]` belong to part p.
    """
    save_array(path, rows)
    save_array(path.with_suffix('.bounds.npy'), bounds.astype(np.int64))


def load_part(path: Path, part: int) -> np.ndarray:
    """Returns the rows of a part that `save_parts` stored, without reading the others."""
    bounds: Any = np.load(path.with_suffix('.bounds.npy'), mmap_mode='r')
    rows: Any = np.load(path, mmap_mode='r')
    return np.array(rows[int(bounds[part]) : int(bounds[part + 1])])
