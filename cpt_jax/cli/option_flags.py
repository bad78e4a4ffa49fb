"""Flags of launch/evaluate.py that are generated from the options of evaluation tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from cpt_jax.evals.options import get_flag

# absl lists these flags in the --help of the program that calls define_option_flags.
flags.disclaim_key_flags()


def define_option_flags(
    fields: Mapping[str, dataclasses.Field],
    flag_values: flags.FlagValues = flags.FLAGS,
) -> Callable[[], dict[str, Any]]:
    """Defines a flag for each task option; returns a function that reads them.

    The returned function returns option values as typed, by name; `registry.make_options` parses
    them.

    Args:
      fields: option fields by name, from `registry.find_option_fields`.
      flag_values: registry that the flags are added to.
    """
    holders = {
        name: _define_option_flag(name, field, flag_values) for name, field in fields.items()
    }

    def read_options() -> dict[str, Any]:
        values = {name: holder.value for name, holder in holders.items()}
        return {
            name: fields[name].default if value is None else value for name, value in values.items()
        }

    return read_options


def _define_option_flag(
    name: str, field: dataclasses.Field, flag_values: flags.FlagValues
) -> flags.FlagHolder:
    """Defines the flag of one option, with the type of the option's default."""
    flag = get_flag(field)
    default: Any = field.default
    given: dict[str, Any] = {'name': name, 'help': flag.help, 'flag_values': flag_values}
    numeric: dict[str, Any] = {**given, 'default': default, 'lower_bound': flag.lower_bound}
    if flag.choices:
        # A default that is not one of the choices, such as '', is neither shown in --help nor
        # accepted as a value.
        shown = default if default in flag.choices else None
        return flags.DEFINE_enum(default=shown, enum_values=[*flag.choices], **given)
    match default:
        case bool():  # before int, because bool is a subclass of int
            return flags.DEFINE_bool(default=default, **given)
        case int():
            return flags.DEFINE_integer(**numeric)
        case float():
            return flags.DEFINE_float(**numeric)
        case tuple():
            return flags.DEFINE_list(default=[*default], **given)
        case _:
            return flags.DEFINE_string(default=default, **given)
