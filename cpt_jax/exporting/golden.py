"""Texts and their vectors, so that anyone can tell whether a reader of an export computes the
same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.load import load_embedder
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import write_json
from cpt_jax.text.prompt_template import Representation
from cpt_jax.text.tokenizer import Side

GOLDEN = 'golden.json'
# How far the vectors of weights in a dtype may be from those in float32 (unit vectors, the largest
# difference of a unit).
TOLERANCE = {'float32': 1e-5, 'float16': 5e-3, 'bfloat16': 5e-2}
TEXTS = (
    'How do I read a file line by line?',
    'def read_lines(path):\n    with open(path) as file:\n        return [line.rstrip() for line '
    'in file]',
    'Contrastive pre-training on unlabelled pairs gives vectors of text and of code.',
    'word',
    '',
    '     ',
    '\t two  spaces ,\n\n  a tab and   line ends \r\n',
    'snake_case camelCase SCREAMING_CASE __dunder__ x+=1;',
    'Zażółć gęślą jaźń, Übergröße, ﬁnal ﬃ, Ｆｕｌｌ ｗｉｄｔｈ',
    '日本語のテキストと한국어 문장, עברית, العربية',
    'emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd '
    '1\ufe0f\u20e3',
    'e\u0301 and \u00e9; [x] {y} <s> [CLS] <|endoftext|>',
    'long ' * 1_000,
    'x' * 10_000,
)

Vectors = Mapping[Side, np.ndarray]


class Golden(NamedTuple):
    """What golden.json holds.

    Attributes:
      vectors: float32[texts, D] of the texts as each side.
      template: that they stand in; '': what a reader puts around them by itself.
    """

    texts: Sequence[str]
    vectors: Vectors
    template: str = ''


def golden_of(embed: Embedder, sides: tuple[Side, ...]) -> Golden:
    """Of TEXTS as each side."""
    return Golden(
        TEXTS,
        {side: embed(TEXTS, side) for side in sides},
        embed.prompt.template if embed.prompt else '',
    )


def write_golden(directory: Path, golden: Golden) -> None:
    """golden.json: the texts, for each side a vector for each, and their template where they have
    one.
    """
    rounded = {
        side: np.round(rows.astype(float), 8).tolist() for side, rows in golden.vectors.items()
    }
    content = {'texts': golden.texts, 'vectors': rounded} | (
        {'template': golden.template} if golden.template else {}
    )
    write_json(directory / GOLDEN, content, indent=None, allow_nan=True)


def read_golden(directory: Path) -> Golden | None:
    """Of a directory; None where it has none. Raises UserError where the file is damaged."""
    path = directory / GOLDEN
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text('utf-8'))
        vectors = {side: np.array(rows, np.float32) for side, rows in content['vectors'].items()}
        return Golden(content['texts'], vectors, str(content.get('template', '')))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: damaged ({type(error).__name__}: {error}); export again'
        ) from None


def differences(directory: Path, golden: Golden) -> dict[Side, float]:
    """The largest difference of a unit, for each side, between vectors and what our own importer
    makes of a directory in float32.
    """
    embed = load_embedder(
        str(directory), dtype='float32', representation=Representation(template=golden.template)
    )
    return {
        side: float(np.abs(embed(golden.texts, side) - rows).max())
        for side, rows in golden.vectors.items()
    }
