"""Keys of a config's `data.sources.NAME` that are not arguments of the source's class."""

from collections.abc import Sequence
from typing import Any

# Keys that set the loss of a source (training/source_losses.py), with the types of their values.
LOSS_KEYS: dict[str, Any] = {
    'infonce': float,
    'direction': str,
    'in_batch': bool,
    'temperature': float,
    'terms': Sequence[tuple[str, float]],
}
# All keys, with the types of their values.
SOURCE_KEYS: dict[str, Any] = {
    'kind': str,
    'weight': float,
    'epochs': float,
    'prompt_x': str,
    'prompt_y': str,
    **LOSS_KEYS,
}
