"""The language of a text, by py3langid, whose model is part of its package."""

import functools
from collections.abc import Sequence
from typing import Any

from cpt_jax.prepare.packages import require_package
from cpt_jax.runtime.errors import UserError

# Characters of a text that are looked at: the language of a longer text does not change.
_CHARACTERS = 2000


@functools.cache
def _load_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify_language(text: str) -> tuple[str, float]:
    """Returns (ISO 639-1 code, probability) of the language of a text."""
    language, probability = _load_identifier().classify(text[:_CHARACTERS])
    return language, float(probability)


def check_languages(languages: Sequence[str]) -> None:
    """Raises UserError if py3langid is not installed or does not know a language."""
    require_package('py3langid', 'filters.languages')
    known = sorted(map(str, _load_identifier().labels))
    unknown = [language for language in languages if language not in known]
    if unknown:
        raise UserError(
            f'filters.languages: {unknown[0]!r} is unknown: choose from {", ".join(known)}'
        )
