"""Whether the texts of a test set were removed from the training data of a model."""

from collections.abc import Iterable, Mapping
from typing import Any

CLEANED = 'cleaned'
NOT_CLEANED = 'not cleaned'
UNKNOWN = 'unknown'


def judge_contamination(settings: Mapping[str, Any], task: str) -> str:
    """Returns CLEANED, NOT_CLEANED or UNKNOWN.

    A test set is cleaned if launch/prepare.py wrote every source of the run and removed its texts
    from each of them, and the run began from scratch. It is not cleaned if a source was prepared
    without this test set. Nothing is known of other sources, and of the data of a pretrained model.

    Args:
      settings: settings of the model in results.json.
      task: name of the task.
    """
    stored = settings.get('cleaned')
    if not stored:
        return UNKNOWN
    found = stored['sources']
    if any(task not in (sets or ()) for sets in found.values()):
        return NOT_CLEANED
    is_whole = found.keys() == settings.get('trained_on', {}).keys() and stored['from_scratch']
    return CLEANED if is_whole else UNKNOWN


def describe_contamination(rows: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Yields a line for each state, with its tasks; nothing if all are unknown.

    Args:
      rows: rows of results.json, by task.
    """
    states = {name: row.get('contamination', UNKNOWN) for name, row in rows.items()}
    if {*states.values()} <= {UNKNOWN}:
        return
    for state in (CLEANED, NOT_CLEANED, UNKNOWN):
        tasks = [name for name, found in states.items() if found == state]
        if tasks:
            yield f'texts of the test set in the training data: {state}: {", ".join(tasks)}'
