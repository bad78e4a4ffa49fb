"""What is merged: the parts, their weights and the method; and the model card that names them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt_jax.exporting.markdown import add_filters
from cpt_jax.exporting.merging.arithmetic import merge_tensors
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.templates import open_templates


class Recipe(NamedTuple):
    """The parts of a merged model.

    Attributes:
      references: model reference of each part.
      weights: weight of each part; their sum is 1.
      method: 'linear' or 'slerp'.
    """

    references: tuple[str, ...]
    weights: tuple[float, ...]
    method: str

    @classmethod
    def make(cls, references: Sequence[str], weights: Sequence[float], method: str) -> 'Recipe':
        """Returns the recipe with weights that are divided by their sum; () are equal weights.

        Raises:
          UserError: there are fewer than two parts, or the weights do not belong to them.
        """
        if len(references) < 2:
            raise UserError(f'--models {",".join(references)}: give two or more, as in A,B,C')
        weights = weights or [1.0] * len(references)
        if len(weights) != len(references):
            raise UserError(
                f'--weights: {len(weights)} weights for {len(references)} models: give one for each'
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f'--weights {",".join(f"{w:g}" for w in weights)}: must be above 0')
        total = sum(weights)
        return cls(tuple(references), tuple(weight / total for weight in weights), method)

    def merge(self, tensors: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the merged tensor in float64. `tensors` may be read one at a time."""
        return merge_tensors(tensors, self.weights, self.method)

    def describe_parts(self) -> list[dict[str, Any]]:
        """Returns the parts as plain values, for metadata."""
        return [
            {'model': reference, 'weight': weight, 'method': self.method}
            for reference, weight in zip(self.references, self.weights, strict=True)
        ]


def write_merge_card(folder: Path, name: str, recipe: Recipe) -> None:
    """Writes README.md, which names the parts and their weights.

    Args:
      folder: directory of the merged model.
      name: name of the merged model.
      recipe: what was merged.
    """
    environment = open_templates(Path(__file__).parent, is_html=False)
    add_filters(environment)
    template = environment.get_template('merge_card.md.j2')
    text = template.render(name=name, parts=recipe.describe_parts(), method=recipe.method)
    (folder / 'README.md').write_text(text + '\n', 'utf-8')
