"""Model FLOPs utilization (MFU) of a run's steps, for the rows of metrics.jsonl."""

from collections.abc import Mapping

import numpy as np

from cpt_jax.data.batch import Batch
from cpt_jax.runtime.hardware import find_chip
from cpt_jax.training.setup import Run


class Utilization:
    """Counts model FLOPs, and the share of the devices' peak that they are."""

    def __init__(self, run: Run):
        self._run = run
        chip = find_chip(run.mesh.devices.flat[0].device_kind)
        self._peak = run.mesh.size * chip.flops / chip.devices if chip else 0.0

    def count_flops(self, parts: Mapping[int, Batch[np.ndarray]]) -> float:
        """Returns the model FLOPs of a step, 0 if the peak rate of the devices is not known.

        Args:
          parts: the parts of the batch that this process prepared. Those of other processes are
            assumed to have as many tokens, in texts of the same lengths.
        """
        if not self._peak:
            return 0.0
        segments = np.concatenate([part.segments_JxRxS for part in parts.values()], axis=1)
        tokens, attended = count_tokens(segments)
        layout = self._run.layout
        return self._run.objective.count_step_flops(
            self._run.encoder_config,
            tokens * layout.parts // len(parts),
            attended,
            self._run.train.batch_pairs,
            layout.texts,
            self._run.lora,
        )

    def make_row(self, flops: float, seconds: float) -> dict[str, float]:
        """Returns the field `mfu` for steps of `flops` that took `seconds`.

        Returns an empty dict if the peak rate of the devices is not known.
        """
        return {'mfu': flops / seconds / self._peak} if self._peak else {}


def count_tokens(segments_JxRxS: np.ndarray) -> tuple[int, float]:
    """Counts the tokens of a batch, without padding.

    Args:
      segments_JxRxS: int, number of the text of each column within its row; 0: padding.

    Returns:
      The number of tokens, and the mean over them of the length of the text that they are in, which
      is the number of keys that a query attends to.
    """
    length = segments_JxRxS.shape[-1]
    flat = segments_JxRxS.reshape(-1)
    is_start = np.ones(len(flat), bool)
    is_start[1:] = flat[1:] != flat[:-1]
    is_start[::length] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=len(flat))[flat[starts] > 0].astype(float)
    tokens = int(lengths.sum())
    return tokens, float(np.sum(lengths**2)) / max(tokens, 1)
