"""golden.json: texts and their vectors, to check that a reader of an export computes the same."""

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
# Largest absolute difference, in any dimension of a unit vector, that rounding the weights to a
# dtype explains; relative to float32.
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
# A long text that another vector results from if a reader truncates its other end.
GOLDEN_TEXTS = (*TEXTS, ' '.join(map(str, range(3_000))))

Vectors = Mapping[Side, np.ndarray]


class Golden(NamedTuple):
    """Content of golden.json.

    Attributes:
      texts: texts that were embedded.
      vectors: float32 [texts, D] for each side.
      template: template around the texts; '' if a reader needs none.
    """

    texts: Sequence[str]
    vectors: Vectors
    template: str = ''


def make_golden(embed: Embedder, sides: tuple[Side, ...]) -> Golden:
    """Embeds GOLDEN_TEXTS as each of the sides."""
    template = embed.prompt.template if embed.prompt else ''
    return Golden(GOLDEN_TEXTS, {side: embed(GOLDEN_TEXTS, side) for side in sides}, template)


def write_golden(directory: Path, golden: Golden) -> None:
    """Writes golden.json, with vectors rounded to 8 decimals."""
    rounded = {
        side: np.round(rows.astype(float), 8).tolist() for side, rows in golden.vectors.items()
    }
    content = {'texts': golden.texts, 'vectors': rounded}
    if golden.template:
        content['template'] = golden.template
    write_json(directory / GOLDEN, content, indent=None, allow_nan=True)


def read_golden(directory: Path) -> Golden | None:
    """Reads golden.json of a directory; returns None if there is none.

    Raises:
      UserError: the file is damaged.
    """
    path = directory / GOLDEN
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text('utf-8'))
        vectors = {side: np.array(rows, np.float32) for side, rows in content['vectors'].items()}
        return Golden(content['texts'], vectors, str(content.get('template', '')))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: damaged ({type(error).__name__}: {error}): export the model again'
        ) from None


def compute_differences(directory: Path, golden: Golden, fsdp: int = 1) -> dict[Side, float]:
    """Returns, for each side, the largest absolute difference between any dimension of the golden
    vectors and those that cpt_jax computes after loading `directory` in float32.

    Args:
      directory: directory of a model.
      golden: texts and vectors to compare with.
      fsdp: number of devices over which the parameters are sharded.
    """
    embed = load_embedder(
        str(directory),
        dtype='float32',
        representation=Representation(template=golden.template),
        fsdp=fsdp,
    )
    return {
        side: float(np.abs(embed(golden.texts, side) - rows).max())
        for side, rows in golden.vectors.items()
    }
