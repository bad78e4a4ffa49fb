"""Texts -> vectors: all that evaluation, search and serving see of a model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from cpt_jax.embed.row_batching import encode_rows, row_length_of, rows_at_once
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import Dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.pooling import POOLINGS
from cpt_jax.model.prefix import Prefix, Prefixes, can_share, common_beginning
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import batch_shards, placed
from cpt_jax.text.pretrained_tokenizer import OwnTokenizer
from cpt_jax.text.prompt_template import Prompt
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import Side, Tokenizer

T = TypeVar('T')
# `encode_rows`, compiled.
Encode = Callable[..., jax.Array]


class _Batch(NamedTuple):
    """Texts of a window whose vectors are being computed.

    Attributes:
      window_NxD: where the vectors of all texts of the window go.
      places: those of the batch's texts.
      vectors_RxD: theirs, and of the rows that stay empty.
      last: of its window.
    """

    window_NxD: np.ndarray
    places: np.ndarray
    vectors_RxD: jax.Array
    last: bool


class Embedder:
    """Turns texts into unit vectors on every device of a mesh.

    A row holds one text, and texts of about one length are computed together, so that few columns
    are padding (docs/embedding-batching.md compares this with other ways). In a causal model, the
    prefix that all texts share (demonstrations, the words of a template) is computed once; vectors
    stay those of the whole texts (model/prefix.py).

    Attributes:
      model_name: `run@step` with the name of the run's directory, or the name of a pretrained
        model's directory.
      settings: all that the vectors depend on, and where the parameters come from.
      workdir: directory of the run that the model comes from; None for a pretrained model.
      width: embedding dimension.
      tokens: tokens of the texts embedded so far.
      columns: columns computed for them, padding included.
      shared: tokens that were not computed, because a shared prefix stood for them.
    """

    # Texts tokenised and sorted by length at once, for each part of the mesh that holds rows of its
    # own.
    WINDOW = 1 << 12
    # Tokens: a shorter common prefix of a window's texts is not computed separately.
    MIN_SHARED_PREFIX = 16
    # Tokens of a text after the common prefix: all their attention scores are held at once, so that
    # a longer text is computed as a whole.
    MAX_SUFFIX = 512
    # Batches that wait on the device while the vectors of an earlier one are read.
    BATCHES_IN_FLIGHT = 2

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer | OwnTokenizer | PromptTokenizer,
        mesh: jax.sharding.Mesh,
        max_tokens: Mapping[Side, int],
        model_name: str = '',
        workdir: Path | None = None,
        origin: Mapping[str, Any] | None = None,
        dense: Sequence[Dense] = (),
        share_prefix: bool = True,
        encode: Encode | None = None,
    ):
        """Prepares to embed; nothing is compiled yet.

        Args:
          encoder: the model, its parameters on the mesh.
          tokenizer: makes ids of texts, with all that stands around them.
          mesh: devices to embed on.
          max_tokens: maximum number of tokens of a text, by side.
          model_name, workdir: see the attributes.
          origin: where the parameters come from, for `settings`.
          dense: layers applied to the vectors of the encoder.
          share_prefix: compute the prefix that all texts share once, where the model allows it.
          encode: the compiled programs of another embedder of the same model; None: its own.

        Raises:
          UserError: the model reads fewer tokens than `max_tokens`.
        """
        if max(max_tokens.values()) > encoder.config.max_length:
            raise UserError(
                f'max_tokens={max(max_tokens.values())}: the model reads '
                f'{encoder.config.max_length} tokens at most'
            )
        self.encoder, self.model_name, self.workdir = encoder, model_name, workdir
        self.width = len(dense[-1].weight_ExD) if dense else encoder.config.embedding_width
        self._dense = tuple(dense)
        self.tokens = self.columns = self.shared = 0
        self._tokenizer, self._mesh, self._max_tokens = tokenizer, mesh, dict(max_tokens)
        self._encode: Encode = encode or jax.jit(encode_rows)
        self._shares = share_prefix and can_share(encoder.config)
        self._origin = dict(origin or {})
        self.settings = describe_settings(encoder.config, tokenizer, max_tokens, self._origin)

    @property
    def prompt(self) -> Prompt | None:
        """What texts stand in; None where that is no template."""
        return self._tokenizer.prompt if isinstance(self._tokenizer, PromptTokenizer) else None

    def reading(self, prompt: Prompt, share: bool = True) -> 'Embedder':
        """Returns an embedder of texts in another template or behind other demonstrations, with the
        same parameters and compiled programs.

        Args:
          share: compute what all texts begin with once, where the model allows it; without, for
            measurements.

        Raises:
          UserError: the model's texts do not stand in a template, or the words around a text are
            more than the model reads.
        """
        if not isinstance(self._tokenizer, PromptTokenizer):
            raise UserError(
                '--model: its texts stand in no template: give --representation prompteol, with a '
                'causal language model'
            )
        tokenizer = self._tokenizer.reading(prompt)
        tokenizer.encode([''], 'x', min(self._max_tokens.values()))
        other = Embedder(
            self.encoder,
            tokenizer,
            self._mesh,
            self._max_tokens,
            self.model_name,
            self.workdir,
            self._origin,
            self._dense,
            share_prefix=share,
            encode=self._encode,
        )
        # With what a caller has added, such as the fingerprint of the weights.
        other.settings = self.settings | other.settings
        return other

    @property
    def window(self) -> int:
        """Texts that are tokenised and sorted by length at once: embedding so many at a time costs
        nothing.
        """
        return self.WINDOW * batch_shards(self._mesh)

    def __call__(
        self,
        texts: Sequence[str],
        side: Side,
        progress: str = '',
        between: Callable[[], None] | None = None,
    ) -> np.ndarray:
        """float32[n, D]: the unit vector of each text, wrapped in its side's delimiters.

        Args:
          texts: n texts of any length; what is over the side's maximum is cut off.
          side: 'x' for queries, 'y' for what they look for.
          progress: a word for a progress bar; none without.
          between: called after each batch of texts; what it raises ends it.
        """
        nothing_0xD = np.zeros((0, self.width), np.float32)
        return np.concatenate(
            [nothing_0xD, *self.stream(texts, side, progress, len(texts), between)]
        )

    def stream(
        self,
        texts: Iterable[str],
        side: Side,
        progress: str = '',
        total: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """The same for more texts than memory holds: float32[n, D] for the next n texts, again and
        again.

        Args:
          texts: read ahead, in a thread.
          total: their number, where it is known: for the progress bar.
          side, progress, between: as above.
        """
        with tqdm(
            total=total, desc=progress, unit='text', disable=None if progress else True
        ) as bar:
            for batch in _late(self._started(texts, side), self.BATCHES_IN_FLIGHT):
                batch.window_NxD[batch.places] = np.asarray(batch.vectors_RxD)[: len(batch.places)]
                bar.update(len(batch.places))
                if between:
                    between()
                if batch.last:
                    yield batch.window_NxD

    def _started(self, texts: Iterable[str], side: Side) -> Iterator[_Batch]:
        """Starts batch after batch; devices compute them while the caller does something else."""
        prefix_of = Prefixes(self.encoder, self._mesh)
        for opening, another, *tokens in self._windows(texts, side):
            shared = common_beginning([opening, another]) if self._shares else 0
            shared = shared if shared >= self.MIN_SHARED_PREFIX else 0
            lengths_N = np.array([len(text) for text in tokens])
            window_NxD = np.empty((len(tokens), self.width), np.float32)
            left = len(tokens)
            near_N = (lengths_N > shared) & (lengths_N - shared <= self.MAX_SUFFIX) & (shared > 0)
            for place in np.flatnonzero(near_N):
                near_N[place] = np.array_equal(tokens[place][:shared], opening[:shared])
            for some, skipped in ((np.flatnonzero(~near_N), 0), (np.flatnonzero(near_N), shared)):
                for places, rows, row_length in self._batches(lengths_N[some] - skipped, skipped):
                    places = some[places]
                    left -= len(places)
                    self.tokens += skipped * len(places)
                    self.shared += skipped * len(places)
                    prefix = prefix_of(opening[:skipped]) if skipped else None
                    vectors_RxD = self._compute(
                        [tokens[place][skipped:] for place in places], rows, row_length, prefix
                    )
                    yield _Batch(window_NxD, places, vectors_RxD, not left)

    def _windows(self, texts: Iterable[str], side: Side) -> Iterator[list[np.ndarray]]:
        """The tokens of the next texts, again and again; made in a thread while the caller is busy
        with those before.

        Those of two short texts stand first: from them is read what texts begin with, whichever
        stand in a window.
        """
        remaining, size = iter(texts), self.window

        def read() -> list[np.ndarray]:
            return self._tokenizer.encode(
                ['', 'A', *islice(remaining, size)], side, self._max_tokens[side]
            )

        with ThreadPoolExecutor(1) as thread:
            upcoming = thread.submit(read)
            while len(tokens := upcoming.result()) > 2:
                upcoming = thread.submit(read)
                yield tokens

    def _batches(
        self, lengths_N: np.ndarray, before: int = 0
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """(places of its texts, rows, row length) of each batch: texts of about one length
        together, longest first.

        Behind a prefix, of `before` tokens, scores with it are held too: the longer it is, the
        fewer rows at once.
        """
        order = np.argsort(-lengths_N, kind='stable')
        while len(order):
            row_length = row_length_of(int(lengths_N[order[0]]), self.encoder.config.max_length)
            rows = self._rows(row_length * max(1, -(-before // self.MAX_SUFFIX)), len(order))
            yield order[:rows], rows, row_length
            order = order[rows:]

    def _rows(self, row_length: int, texts: int) -> int:
        """As many as a device computes at once, or where fewer texts are left, that divided by a
        power of 4.
        """
        parts = batch_shards(self._mesh)
        rows = rows_at_once(self._mesh.devices.flat[0].platform, row_length)
        while rows // 4 * parts >= texts:
            rows //= 4
        return rows * parts

    def _compute(
        self, tokens: Sequence[np.ndarray], rows: int, row_length: int, prefix: Prefix | None = None
    ) -> jax.Array:
        """Starts to compute vectors_RxD of some texts, the first rows; the other rows are empty.
        Texts follow the prefix.
        """
        lengths_R = np.ones(rows, np.int64)
        lengths_R[: len(tokens)] = [len(text) for text in tokens]
        self.tokens += sum(map(len, tokens))
        self.columns += rows * row_length
        tokens_RxS = np.zeros((rows, row_length), np.int32)
        for row_S, text in zip(tokens_RxS, tokens, strict=False):
            row_S[: len(text)] = text
        within_part = np.arange(rows) % (rows // batch_shards(self._mesh))
        eos_Rx1 = (within_part * row_length + lengths_R - 1).astype(np.int32)[:, None]
        with jax.set_mesh(self._mesh):
            return self._encode(
                self.encoder, self._dense, prefix, *placed(self._mesh, tokens_RxS, eos_Rx1)
            )


def _late(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, each when `count` more have been taken, or there are no more."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def describe_settings(
    config: EncoderConfig,
    tokenizer: Tokenizer | OwnTokenizer | PromptTokenizer,
    max_tokens: Mapping[Side, int],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the vectors of an embedder depend on, as plain values."""
    return {
        'max_tokens_x': max_tokens['x'],
        'max_tokens_y': max_tokens['y'],
        'truncation': 'end',
        **tokenizer.describe(),
        'pooling': POOLINGS[config.pooling].description,
        'dtype': config.compute_dtype.name,
        'tokenizer': tokenizer.fingerprint,
    } | dict(origin)
