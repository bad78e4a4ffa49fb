"""Flags of launch/evaluate.py that are made from the options of evaluation tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from cpt_jax.evals.options import flag_of

# Those that are defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_option_flags(
    fields: Mapping[str, dataclasses.Field],
    flag_values: flags.FlagValues = flags.FLAGS,
) -> Callable[[], dict[str, Any]]:
    """Defines a flag for each option and returns their reader: option name -> value as typed,
    which `registry.make_options` parses.

    Args:
      fields: options by name, as `registry.option_fields` returns them.
      flag_values: where the flags are registered.
    """
    holders = {name: _define(name, field, flag_values) for name, field in fields.items()}

    def read() -> dict[str, Any]:
        values = {name: holder.value for name, holder in holders.items()}
        return {
            name: fields[name].default if value is None else value for name, value in values.items()
        }

    return read


def _define(name: str, field: dataclasses.Field, flag_values: flags.FlagValues) -> flags.FlagHolder:
    """Defines the flag of one option; its kind follows from the option's default."""
    flag = flag_of(field)
    default: Any = field.default
    given: dict[str, Any] = {'name': name, 'help': flag.help, 'flag_values': flag_values}
    numeric: dict[str, Any] = {**given, 'default': default, 'lower_bound': flag.lower_bound}
    if flag.choices:
        # A default that is no choice, such as '', is not shown and cannot be typed.
        shown = default if default in flag.choices else None
        return flags.DEFINE_enum(default=shown, enum_values=[*flag.choices], **given)
    match default:
        case bool():  # before int, which it is too
            return flags.DEFINE_bool(default=default, **given)
        case int():
            return flags.DEFINE_integer(**numeric)
        case float():
            return flags.DEFINE_float(**numeric)
        case tuple():
            return flags.DEFINE_list(default=[*default], **given)
        case _:
            return flags.DEFINE_string(default=default, **given)
