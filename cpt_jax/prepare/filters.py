"""Filters of documents: plain functions that return the reason why a text is dropped, or ''."""

from cpt_jax.prepare.settings import Filters


def explain_rejected(text: str, filters: Filters) -> str:
    """Returns the reason why a text is dropped, or ''.

    Args:
      text: the text of an item.
      filters: the filters of the config.
    """
    if not text.strip():
        return 'empty'
    if len(text) < filters.min_characters:
        return 'too short'
    if len(text) > filters.max_characters:
        return 'too long'
    return ''
