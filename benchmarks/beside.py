"""What the programs that measure us beside sentence-transformers have in common: the model, the
flags, the report.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from absl import flags


@dataclasses.dataclass(frozen=True)
class Model:
    """What is measured; the flags say what each is."""

    max_tokens: int
    width: int
    layers: int
    heads: int
    vocab_size: int


Settings = TypeVar('Settings', bound=Model)


def define_flags() -> None:
    """Those of the model, --rounds and --json; a program calls it where it defines its own, as the
    tests import several of them.
    """
    flags.DEFINE_integer('max_tokens', 256, 'Of a text, its delimiters included.')
    flags.DEFINE_integer('width', 384, 'Of the model.')
    flags.DEFINE_integer('layers', 6, 'Of the model.')
    flags.DEFINE_integer('heads', 6, 'Of the model.')
    flags.DEFINE_integer(
        'vocab_size', 30_000, 'Ids of the tokenizer, which is trained on the texts.'
    )
    flags.DEFINE_integer('rounds', 3, 'Turns of each side.')
    flags.DEFINE_string('json', '', 'Also write the figures to this file.')


def report(
    kind: type[Settings],
    measure: Callable[[Settings, int], Mapping[str, Any]],
    print_table: Callable[[Mapping], None],
) -> None:
    """Measures with the settings of the flags, and the turns of --rounds; prints a table, and
    writes --json.
    """
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)}
    settings = kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
    found = measure(settings, flags.FLAGS.rounds)
    print_table(found)
    if flags.FLAGS.json:
        Path(flags.FLAGS.json).write_text(json.dumps(found, indent=2) + '\n')
