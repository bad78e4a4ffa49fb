"""A source of texts for language models, which contains each text of a source of pairs once."""

from cpt_jax.data.pairs import Pair, Source
from cpt_jax.data.sources.prepared_texts import PreparedTexts
from cpt_jax.data.sources.text import TextSource
from cpt_jax.data.sources.tfds_pairs import TfdsSource

# Separates x and y of a pair, like paragraphs.
JOINT = '\n\n'


class DocumentSource:
    """A source of texts: each pair has a text as its x and an empty y.

    For plain text, the texts are its pieces, each of which is in two pairs of the original source;
    also if launch/prepare.py made the pairs (prepared_texts.py). For any other source, x and y of a
    pair are joined into one text. Every token is therefore read once per epoch.

    Attributes:
      split, fingerprint: those of the source of pairs.
      is_prepared, searched_sets: see TfdsSource.
      documents: None. Pieces of one document may share a batch, because a language model has no
        negatives.
    """

    documents = None

    def __init__(self, pairs: Source):
        self._pairs = pairs
        self._pieces = pairs.get_pieces() if isinstance(pairs, TextSource) else None
        self._prepared: PreparedTexts | None = None
        if isinstance(pairs, TfdsSource) and pairs.rules and pairs.documents is not None:
            self._prepared = PreparedTexts(pairs.rules, pairs.documents)
        self.split = pairs.split
        self.fingerprint = pairs.fingerprint
        self.is_prepared = getattr(pairs, 'is_prepared', False)
        self.searched_sets = getattr(pairs, 'searched_sets', None)

    def __len__(self) -> int:
        return len(self._prepared or self._pieces or self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if self._pieces is not None:
            return Pair(x=self._pieces[index], y='')
        field = 'both'
        if self._prepared:
            index, field = self._prepared.locate(index)
        pair = self._pairs[index]
        if field != 'both':
            return Pair(x=pair.x if field == 'x' else pair.y, y='', id=pair.id)
        return Pair(x=pair.x + JOINT + pair.y, y='', id=pair.id)

    def summary(self) -> str:
        """Returns one line: the number of texts and the summary of the source of pairs."""
        what = 'x and y joined'
        if self._pieces is not None or (self._prepared and len(self._prepared) > len(self._pairs)):
            what = 'pieces'
        return f'{len(self):,} texts ({what}) of {self._pairs.summary()}'
