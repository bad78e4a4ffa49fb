"""Filters of documents: plain functions that return the reason why a text is dropped, or ''."""

from cpt_jax.prepare.languages import identify_language
from cpt_jax.prepare.quality import explain_poor_quality
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
    if filters.quality and (reason := explain_poor_quality(text)):
        return f'quality: {reason}'
    if filters.languages:
        language, probability = identify_language(text)
        if language not in filters.languages:
            return 'other language'
        if probability < filters.min_language_probability:
            return 'unsure language'
    return ''
