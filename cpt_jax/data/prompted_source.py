"""A source whose texts begin with prompts."""

from collections.abc import Mapping

from cpt_jax.data.pairs import Pair, Source, digest_texts
from cpt_jax.text.tokenizer import Side


class PromptedSource:
    """The pairs of a source, with a prompt before each text.

    Attributes:
      split, documents, most_positives: those of the source without prompts.
      fingerprint: differs if the source or a prompt differs.
    """

    def __init__(self, pairs: Source, prompts: Mapping[Side, str]):
        """Wraps a source.

        Args:
          pairs: the source without prompts.
          prompts: prompt of x, and of y and its hard negatives.
        """
        self._pairs = pairs
        self._prompts = prompts
        self.split = pairs.split
        self.documents = pairs.documents
        self.most_positives = getattr(pairs, 'most_positives', 0)
        self.fingerprint = digest_texts(pairs.fingerprint, prompts['x'], prompts['y'])

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        pair = self._pairs[index]
        x, y = self._prompts['x'], self._prompts['y']
        negatives = tuple(y + negative for negative in pair.negatives)
        return pair._replace(x=x + pair.x, y=y + pair.y, negatives=negatives, prompts=(x, y))

    def summary(self) -> str:
        """Returns one line: that of the source, and the prompts."""
        x, y = self._prompts['x'], self._prompts['y']
        return f'{self._pairs.summary()}; prompts x {x!r}, y {y!r}'
