"""Seconds that each process publishes for the others, through the coordinator's key-value store.

Reading waits for nobody: a process that is late has an older value there.
"""

import jax
from orbax.checkpoint import multihost

_SECONDS = 'cpt_jax/host_seconds'  # one key below it for each process


def publish_host_seconds(seconds: float) -> None:
    """Writes the seconds of this process."""
    store = multihost.get_jax_distributed_client()
    store.key_value_set(f'{_SECONDS}/{jax.process_index()}', str(seconds), allow_overwrite=True)


def read_host_seconds() -> dict[int, float]:
    """Returns the seconds last published by each process, by process index."""
    store = multihost.get_jax_distributed_client()
    return {
        int(key.rpartition('/')[2]): float(value)
        for key, value in store.key_value_dir_get(_SECONDS)
    }
