"""Shared parts of the benchmarks against sentence-transformers: model settings, flags, report."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from absl import flags


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Shape of the model that is measured; the fields are documented by the flags of their name."""

    max_tokens: int
    width: int
    layers: int
    heads: int
    vocab_size: int


Settings = TypeVar('Settings', bound=ModelSettings)


def define_flags() -> None:
    """Defines the flags of the model, --rounds and --json.

    Each program calls it together with its own definitions, because tests import several programs
    into one process.
    """
    flags.DEFINE_integer('max_tokens', 256, 'Maximum tokens of a text, with delimiters.')
    flags.DEFINE_integer('width', 384, 'Embedding dimension of the model.')
    flags.DEFINE_integer('layers', 6, 'Layers of the model.')
    flags.DEFINE_integer('heads', 6, 'Attention heads of the model.')
    flags.DEFINE_integer(
        'vocab_size', 30_000, 'Vocabulary size of the tokenizer, which is trained on the texts.'
    )
    flags.DEFINE_integer('rounds', 3, 'Timed rounds; each side runs once per round.')
    flags.DEFINE_string('json', '', 'Also write the results to this file.')


def run_and_report(
    kind: type[Settings],
    measure: Callable[[Settings, int], Mapping[str, Any]],
    print_table: Callable[[Mapping], None],
) -> None:
    """Measures with the values of the flags, prints a table, and writes --json.

    Args:
      kind: class of the settings; each field has the value of the flag of its name.
      measure: function of the settings and the number of rounds that returns the results.
      print_table: function that prints the results.
    """
    values = {}
    for field in dataclasses.fields(kind):
        value = flags.FLAGS[field.name].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    results = measure(kind(**values), flags.FLAGS.rounds)
    print_table(results)
    if flags.FLAGS.json:
        Path(flags.FLAGS.json).write_text(json.dumps(results, indent=2) + '\n')
