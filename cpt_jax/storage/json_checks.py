"""Checks of the values in JSON files that other programs wrote."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cpt_jax.runtime.errors import UserError

# Longest part of a value that a message shows.
_SHOWN = 60


class Allowed(NamedTuple):
    """The values that a key may have.

    Attributes:
      description: noun phrase for messages, such as 'a text'.
      accepts: whether a value is one of them.
    """

    description: str
    accepts: Callable[[object], bool]


def allow_integers(least: int, most: int) -> Allowed:
    """Returns the integers of a range; true and false are none."""

    def accepts(value: object) -> bool:
        return is_integer(value) and least <= value <= most  # type: ignore[operator]

    return Allowed(f'an integer from {least:,} to {most:,}', accepts)


def allow_numbers(least: float = -1e300, most: float = 1e300) -> Allowed:
    """Returns the numbers of a range, by default the finite ones; true and false are none."""

    def accepts(value: object) -> bool:
        return is_number(value) and least <= value <= most  # type: ignore[operator]

    limits = [f'from {least:g}'] if least > -1e300 else []
    limits += [f'to {most:g}'] if most < 1e300 else []
    return Allowed(' '.join(['a number', *limits]), accepts)


def allow_null(allowed: Allowed) -> Allowed:
    """Returns the allowed values and null."""
    return Allowed(
        f'{allowed.description}, or null', lambda value: value is None or allowed.accepts(value)
    )


def allow_list(items: Allowed) -> Allowed:
    """Returns the lists of such items."""
    return Allowed(
        f'a list, each item {items.description}',
        lambda value: isinstance(value, list) and all(map(items.accepts, value)),
    )


def allow_object(values: Allowed) -> Allowed:
    """Returns the objects with such values."""
    return Allowed(
        f'an object, each value {values.description}',
        lambda value: isinstance(value, dict) and all(map(values.accepts, value.values())),
    )


def is_integer(value: object) -> bool:
    """Whether a value is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is an int or float, neither bool nor nan."""
    return (is_integer(value) or isinstance(value, float)) and value == value


FLAG = Allowed('true or false', lambda value: isinstance(value, bool))
TEXT = Allowed('a text', lambda value: isinstance(value, str))
OBJECT = Allowed('an object', lambda value: isinstance(value, dict))


def check_values(path: Path, content: Mapping, allowed: Mapping[str, Allowed]) -> None:
    """Checks the keys of a JSON object that it has; other keys may have any value.

    Args:
      path: the file, for messages.
      content: the object.
      allowed: the values of each key.

    Raises:
      UserError: a value is not allowed.
    """
    for key, values in allowed.items():
        if key in content and not values.accepts(content[key]):
            raise UserError(
                f'{path}: {key}={format_value(content[key])}: must be {values.description}'
            )


def format_value(value: object) -> str:
    """Returns the beginning of a value's repr, for messages."""
    try:
        text = repr(value)
    except ValueError:  # an integer with thousands of digits
        text = 'a number of thousands of digits'
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
