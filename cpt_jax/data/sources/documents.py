"""The texts of a source of pairs, each once: what a language model reads."""

from cpt_jax.data.pairs import Pair, Source
from cpt_jax.data.sources.text import TextSource

# Between x and y of a pair, as between paragraphs.
JOINT = '\n\n'


class DocumentSource:
    """A source whose x are texts of a source of pairs, and whose y are empty.

    Of plain text its pieces, of which each stands in two pairs. Of any other source each pair, x
    before y, as one longer text. So every token is read once in an epoch.

    Attributes:
      split, fingerprint: of the source of pairs.
      documents: None: pieces of one document may share a batch, as they are no negatives of each
        other.
    """

    documents = None

    def __init__(self, pairs: Source):
        self._pairs = pairs
        self._pieces = pairs.pieces() if isinstance(pairs, TextSource) else None
        self.split, self.fingerprint = pairs.split, pairs.fingerprint

    def __len__(self) -> int:
        return len(self._pairs if self._pieces is None else self._pieces)

    def __getitem__(self, index: int) -> Pair:
        if self._pieces is not None:
            return Pair(x=self._pieces[index], y='')
        pair = self._pairs[index]
        return Pair(x=pair.x + JOINT + pair.y, y='', id=pair.id)

    def summary(self) -> str:
        return (
            f'{len(self):,} texts, '
            f'{"the pieces" if self._pieces is not None else "each x and y in one"}, of '
            f'{self._pairs.summary()}'
        )
