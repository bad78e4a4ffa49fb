"""Checks that the values of a config have the types of the arguments that they become."""

import collections.abc
import types
import typing
from collections.abc import Mapping
from typing import Any

from cpt_jax.runtime.errors import UserError

# Integers are stored in 64 bits.
_LARGEST = 2**63 - 1
_SHOWN = 80  # longest part of a value that a message shows
_NAMES = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'a text'}


def check_type(name: str, value: object, annotation: Any) -> None:
    """Checks a value of a config.

    Args:
      name: the full key, for the message.
      value: the value.
      annotation: type of the argument; types that no config can hold accept every value.

    Raises:
      UserError: the value is of another type, not a number, or too large.
    """
    if not _matches(value, annotation):
        raise UserError(f'{name}={format_config_value(value)}: must be {_describe(annotation)}')


def format_config_value(value: object) -> str:
    """Returns the beginning of a value's repr, for messages."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = 'a number of thousands of digits'
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def _matches(value: object, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, choice) for choice in arguments)
    if annotation is types.NoneType or annotation is None:
        return value is None
    if annotation is bool:  # 0 and 1 are equal to False and True
        return isinstance(value, bool | int) and value in (0, 1)
    if annotation is int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and abs(value) <= _LARGEST  # type: ignore[arg-type]
    if annotation is float:
        is_number = isinstance(value, float) or _matches(value, int)
        return is_number and value == value
    if annotation is str:
        return isinstance(value, str)
    if origin in (tuple, collections.abc.Sequence):
        return _matches_sequence(value, arguments)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            _matches(key, arguments[0]) and _matches(item, arguments[1])
            for key, item in value.items()
        )
    return True


def _matches_sequence(value: object, arguments: tuple[Any, ...]) -> bool:
    """Returns whether a value is a list or tuple of such items.

    Args:
      value: the value.
      arguments: type of all items, optionally followed by an ellipsis; or the type of each item.
    """
    if not isinstance(value, list | tuple):
        return False
    if len(arguments) == 1 or arguments[-1] is Ellipsis:
        return all(_matches(item, arguments[0]) for item in value)
    return len(value) == len(arguments) and all(map(_matches, value, arguments))


def _describe(annotation: Any) -> str:
    """Returns a noun phrase for a type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return ' or '.join(dict.fromkeys(map(_describe, arguments)))
    if annotation is types.NoneType:
        return 'None'
    if origin in (tuple, collections.abc.Sequence):
        kinds = [argument for argument in arguments if argument is not Ellipsis]
        return f'a sequence, each item {" and ".join(map(_describe, kinds))}'
    if origin is collections.abc.Mapping:
        return f'a section, each value {_describe(arguments[1])}'
    return _NAMES.get(annotation, 'of another type')
