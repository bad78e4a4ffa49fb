"""Whether the texts of a test set were removed from the training data of a model."""

from collections.abc import Mapping
from typing import Any

CLEANED = 'cleaned'
PARTLY_CLEANED = 'partly cleaned'  # the reasons follow in parentheses
NOT_CLEANED = 'not cleaned'
UNKNOWN = 'unknown'


def judge_contamination(settings: Mapping[str, Any], task: str) -> str:
    """Returns CLEANED, PARTLY_CLEANED with the reasons, NOT_CLEANED or UNKNOWN.

    A test set is cleaned if launch/prepare.py wrote every source of the run and removed its texts
    from each of them, and the run began from scratch. It is partly cleaned if only its queries were
    searched for, or some of its texts are too short to be searched for. It is not cleaned if a
    source was prepared without this test set, or all its texts are too short. Nothing is known of
    other sources, and of the data of a pretrained model.

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
    # Older runs stored the names of the sets alone.
    scopes = [sets[task] for sets in found.values() if isinstance(sets, Mapping)]
    if any(scope['texts'] and not scope['searched'] for scope in scopes):
        return NOT_CLEANED
    is_whole = found.keys() == settings.get('trained_on', {}).keys() and stored['from_scratch']
    if not is_whole:
        return UNKNOWN
    limits = dict.fromkeys(limit for scope in scopes for limit in _list_limits(scope))
    return f'{PARTLY_CLEANED} ({", ".join(limits)})' if limits else CLEANED


def _list_limits(scope: Mapping[str, Any]) -> list[str]:
    limits = []
    if scope['queries_only']:
        limits.append('queries only')
    if scope['searched'] < scope['texts']:
        limits.append(f'{scope["searched"]:,} of {scope["texts"]:,} texts')
    return limits
