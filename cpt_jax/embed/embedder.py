"""Turns texts into vectors: the interface of a model for evaluation, search and serving."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from cpt_jax.data.equality import does_fold_case
from cpt_jax.embed.row_batching import choose_row_length, choose_rows_per_device, encode_rows
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import Dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.pooling import POOLINGS
from cpt_jax.model.prefix import Prefix, PrefixCache, can_share_prefix, count_common_ids
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import count_batch_shards, place_on_mesh
from cpt_jax.text.prompt_template import Prompt
from cpt_jax.text.prompt_tokenizer import PromptTokenizer, TextTokenizer
from cpt_jax.text.tokenizer import Side

T = TypeVar('T')
# The compiled `encode_rows`.
Encode = Callable[..., jax.Array]


class _Batch(NamedTuple):
    """A batch in flight: its vectors are still being computed on the devices.

    All its texts belong to one window. A window is a list of texts that are sorted by length and
    then split into batches.

    Attributes:
      window_NxD: float32, vectors of all texts of the window, filled batch after batch.
      indices: int[n], indices of the batch's texts in the window.
      vectors_RxD: float32, vectors of the batch's texts, then those of empty rows.
      is_last: whether this is the last batch of its window.
    """

    window_NxD: np.ndarray
    indices: np.ndarray
    vectors_RxD: jax.Array
    is_last: bool


class Embedder:
    """Turns texts into vectors on all devices of a mesh; by default into unit vectors.

    Each row holds one text, and texts of similar length share a batch, so that few columns are
    padding (docs/benchmarks.md compares this with alternatives). In a causal model, the
    prefix that all texts share (demonstrations, the start of a template) is computed once; the
    vectors are those of the whole texts (model/prefix.py).

    Attributes:
      model_name: `run@step` with the name of the run's directory, or the name of a pretrained
        model's directory.
      settings: all settings that vectors depend on, and the origin of the parameters.
      workdir: directory of the run that the model comes from; None for a pretrained model.
      summary: lines that say what was loaded, for the start of a program.
      width: embedding dimension.
      tokens: number of tokens in all texts embedded so far.
      columns: number of columns computed for them, including padding.
      shared: number of tokens that were not computed, because they were in a shared prefix.
    """

    # Number of texts that are tokenized and sorted by length together, per batch shard of the mesh.
    WINDOW = 1 << 12
    # Minimum length, in tokens, of a common prefix that is computed separately.
    MIN_SHARED_PREFIX = 16
    # Maximum number of tokens after the common prefix. All their attention scores are in memory at
    # once, so longer texts are computed without the shared prefix.
    MAX_SUFFIX = 512
    # Batches queued on the devices while the vectors of an earlier one are copied to the host.
    BATCHES_IN_FLIGHT = 2

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: TextTokenizer,
        mesh: jax.sharding.Mesh,
        max_tokens: Mapping[Side, int],
        model_name: str = '',
        workdir: Path | None = None,
        origin: Mapping[str, Any] | None = None,
        dense: Sequence[Dense] = (),
        share_prefix: bool = True,
        encode: Encode | None = None,
        unpooled: Mapping[Side, int] | None = None,
        normalized: bool = True,
    ):
        """Prepares to embed; programs are compiled at the first call.

        Args:
          encoder: model, with its parameters on the mesh.
          tokenizer: tokenizer that adds delimiters, special tokens or a template.
          mesh: devices to embed on.
          max_tokens: maximum number of tokens of a text, by side.
          model_name, workdir: see the attributes.
          origin: origin of the parameters, as plain values for `settings`.
          dense: layers applied after the encoder's pooling.
          share_prefix: whether to compute a prefix that all texts share only once, if the model
            allows it.
          encode: compiled programs of another embedder of the same model, optional.
          unpooled: number of tokens at the beginning of a text that the pooling leaves out, by
            side; None: none.
          normalized: whether vectors are normalized to unit length. A model that is compared by dot
            products may need vectors of other lengths.

        Raises:
          UserError: `max_tokens` exceeds the model's maximum length.
        """
        if max(max_tokens.values()) > encoder.config.max_length:
            raise UserError(
                f'max_tokens={max(max_tokens.values())}: the model reads '
                f'{encoder.config.max_length} tokens at most'
            )
        self.encoder = encoder
        self.model_name = model_name
        self.workdir = workdir
        self.summary: Sequence[str] = ()
        self.width = encoder.config.vector_width
        self.tokens = 0
        self.columns = 0
        self.shared = 0
        self.dense = tuple(dense)
        self._tokenizer = tokenizer
        self._mesh = mesh
        self._max_tokens = dict(max_tokens)
        self._unpooled = dict(unpooled or {})
        self._normalized = normalized
        program = encode_rows if normalized else partial(encode_rows, normalized=False)
        self._encode: Encode = encode or jax.jit(program)
        self._shares_prefix = share_prefix and can_share_prefix(encoder.config)
        self._origin = dict(origin or {})
        self.settings = describe_settings(encoder.config, tokenizer, max_tokens, self._origin)

    @property
    def prompt(self) -> Prompt | None:
        """The prompt around texts; None if the tokenizer has no template."""
        return self._tokenizer.prompt if isinstance(self._tokenizer, PromptTokenizer) else None

    @property
    def folds_case(self) -> bool:
        """Whether the model reads capitals as small letters."""
        return does_fold_case(self._tokenizer, max(self._max_tokens.values()))

    def with_prompt(self, prompt: Prompt, share: bool = True) -> 'Embedder':
        """Returns an embedder with another prompt, the same parameters and the same compiled
        programs.

        Args:
          prompt: template and demonstrations around texts.
          share: whether to compute a shared prefix only once; False is for measurements.

        Raises:
          UserError: the model's texts have no template, or the prompt is longer than the model's
            maximum length.
        """
        if not isinstance(self._tokenizer, PromptTokenizer):
            raise UserError(
                '--model: its texts have no template; give --representation prompteol, with a '
                'causal language model'
            )
        tokenizer = self._tokenizer.with_prompt(prompt)
        # Raises UserError if the prompt is too long.
        tokenizer.encode([''], 'x', min(self._max_tokens.values()))
        other = Embedder(
            self.encoder,
            tokenizer,
            self._mesh,
            self._max_tokens,
            self.model_name,
            self.workdir,
            self._origin,
            self.dense,
            share_prefix=share,
            encode=self._encode,
            normalized=self._normalized,
        )
        # Keeps entries that a caller has added, such as the fingerprint of the weights.
        other.settings = self.settings | other.settings
        other.width = self.width
        return other

    def with_dimensions(self, dimensions: int) -> 'Embedder':
        """Returns an embedder of the first dimensions of the vectors, normalized again unless they
        are compared by dot product, with the same parameters. It is for models that were trained
        so (Matryoshka, arXiv 2205.13147).

        Raises:
          UserError: the vectors have fewer dimensions.
        """
        if not 1 <= dimensions <= self.width:
            raise UserError(
                f'--dimensions {dimensions}: must be from 1 to {self.width}, the dimensions of the '
                f"model's vectors"
            )
        other = copy.copy(self)
        other.width = dimensions
        other.settings = {**self.settings, 'dimensions': dimensions}
        other._encode = jax.jit(partial(encode_rows, width=dimensions, normalized=self._normalized))
        return other

    @property
    def window(self) -> int:
        """Number of texts that are tokenized and sorted by length together. Splitting texts into
        calls of this size adds no padding.
        """
        return self.WINDOW * count_batch_shards(self._mesh)

    def __call__(
        self,
        texts: Sequence[str],
        side: Side,
        progress: str = '',
        between: Callable[[], None] | None = None,
    ) -> np.ndarray:
        """Returns float32[n, D]: the vector of each text.

        Args:
          texts: n texts of any length; they are truncated to the side's maximum.
          side: 'x' for queries, 'y' for documents.
          progress: label of a progress bar; '' shows none.
          between: function called after each batch, optional. It may raise to stop.
        """
        empty_0xD = np.zeros((0, self.width), np.float32)
        return np.concatenate([empty_0xD, *self.stream(texts, side, progress, len(texts), between)])

    def stream(
        self,
        texts: Iterable[str],
        side: Side,
        progress: str = '',
        total: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields float32[n, D] for the next n texts, until all are embedded.

        It is the same as a call, for more texts than fit in memory.

        Args:
          texts: texts, read ahead in a thread.
          side: 'x' for queries, 'y' for documents.
          progress: label of a progress bar; '' shows none.
          total: number of texts for the progress bar, optional.
          between: function called after each batch, optional. It may raise to stop.
        """
        if isinstance(texts, str):
            raise TypeError('texts: expected a list of texts, not one text: write [text]')
        started = _delay(self._start_batches(texts, side), self.BATCHES_IN_FLIGHT)
        with tqdm(
            total=total, desc=progress, unit='text', disable=None if progress else True
        ) as bar:
            for batch in started:
                count = len(batch.indices)
                batch.window_NxD[batch.indices] = np.asarray(batch.vectors_RxD)[:count]
                bar.update(count)
                if between:
                    between()
                if batch.is_last:
                    yield batch.window_NxD

    def _start_batches(self, texts: Iterable[str], side: Side) -> Iterator[_Batch]:
        """Yields each batch as soon as its computation is dispatched; devices run asynchronously.

        Texts that begin with the common prefix and have 1 to MAX_SUFFIX tokens after it share its
        computation. All other texts are computed whole.
        """
        prefixes = PrefixCache(self.encoder, self._mesh)
        for empty_text, other_text, *tokens in self._read_windows(texts, side):
            prefix_length = 0
            if self._shares_prefix:
                prefix_length = count_common_ids([empty_text, other_text])
                if prefix_length < self.MIN_SHARED_PREFIX:
                    prefix_length = 0
            prefix_ids = empty_text[:prefix_length]
            lengths_N = np.array([len(text) for text in tokens])
            window_NxD = np.empty((len(tokens), self.width), np.float32)
            remaining = len(tokens)
            suffix_lengths_N = lengths_N - prefix_length
            shares_N = (suffix_lengths_N > 0) & (suffix_lengths_N <= self.MAX_SUFFIX)
            shares_N &= prefix_length > 0
            for i in np.flatnonzero(shares_N):
                shares_N[i] = np.array_equal(tokens[i][:prefix_length], prefix_ids)
            groups = [(np.flatnonzero(~shares_N), 0), (np.flatnonzero(shares_N), prefix_length)]
            for group, skipped in groups:
                batches = self._split_into_batches(lengths_N[group] - skipped, skipped)
                for in_group, rows, row_length in batches:
                    indices = group[in_group]
                    remaining -= len(indices)
                    self.tokens += skipped * len(indices)
                    self.shared += skipped * len(indices)
                    prefix = prefixes(prefix_ids) if skipped else None
                    vectors_RxD = self._dispatch_batch(
                        [tokens[i][skipped:] for i in indices],
                        rows,
                        row_length,
                        prefix,
                        self._unpooled.get(side),
                    )
                    yield _Batch(window_NxD, indices, vectors_RxD, remaining == 0)

    def _read_windows(self, texts: Iterable[str], side: Side) -> Iterator[list[np.ndarray]]:
        """Yields the tokens of each window of texts, tokenized in a thread one window ahead.

        The tokens of '' and 'A' come first in every window. Their common prefix is the one of the
        template, which does not depend on the texts of the window.
        """
        remaining = iter(texts)
        size = self.window

        def read() -> list[np.ndarray]:
            return self._tokenizer.encode(
                ['', 'A', *islice(remaining, size)], side, self._max_tokens[side]
            )

        with ThreadPoolExecutor(1) as thread:
            upcoming = thread.submit(read)
            while len(tokens := upcoming.result()) > 2:
                upcoming = thread.submit(read)
                yield tokens

    def _split_into_batches(
        self, lengths_N: np.ndarray, prefix_length: int = 0
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Yields (indices of texts, rows, row length) of each batch, longest texts first.

        Args:
          lengths_N: int, number of tokens of each text after the prefix.
          prefix_length: number of tokens of the prefix. Attention scores with it are in memory too,
            so that a longer prefix leaves room for fewer rows.
        """
        order = np.argsort(-lengths_N, kind='stable')
        while len(order):
            row_length = choose_row_length(int(lengths_N[order[0]]), self.encoder.config.max_length)
            prefix_factor = max(1, -(-prefix_length // self.MAX_SUFFIX))
            rows = self._choose_rows(row_length * prefix_factor, len(order))
            yield order[:rows], rows, row_length
            order = order[rows:]

    def _choose_rows(self, row_length: int, texts: int) -> int:
        """Returns the number of rows of a batch over all devices.

        It is what the devices compute at once, divided by 4 as long as it still fits all remaining
        texts.
        """
        shards = count_batch_shards(self._mesh)
        rows = choose_rows_per_device(self._mesh.devices.flat[0].platform, row_length)
        while rows // 4 * shards >= texts:
            rows //= 4
        return rows * shards

    def _dispatch_batch(
        self,
        tokens: Sequence[np.ndarray],
        rows: int,
        row_length: int,
        prefix: Prefix | None = None,
        unpooled: int | None = None,
    ) -> jax.Array:
        """Dispatches the computation of a batch; returns float32[rows, D], first those of `tokens`.

        Args:
          tokens: int32 ids of each text, after the prefix.
          rows: number of rows; those without a text are padding.
          row_length: number of columns.
          prefix: computed prefix of all texts, optional.
          unpooled: see `Encoder.compute_states`.
        """
        lengths_R = np.ones(rows, np.int64)
        lengths_R[: len(tokens)] = [len(text) for text in tokens]
        self.tokens += sum(map(len, tokens))
        self.columns += rows * row_length
        tokens_RxS = np.zeros((rows, row_length), np.int32)
        for row_S, text in zip(tokens_RxS, tokens, strict=False):
            row_S[: len(text)] = text
        # EOS indices are positions in the flattened rows of one shard.
        row_in_shard_R = np.arange(rows) % (rows // count_batch_shards(self._mesh))
        eos_Rx1 = (row_in_shard_R * row_length + lengths_R - 1).astype(np.int32)[:, None]
        with jax.set_mesh(self._mesh):
            arrays = place_on_mesh(self._mesh, tokens_RxS, eos_Rx1)
            if unpooled:
                return self._encode(self.encoder, self.dense, None, *arrays, np.int32(unpooled))
            return self._encode(self.encoder, self.dense, prefix, *arrays)


def _delay(items: Iterator[T], count: int) -> Iterator[T]:
    """Yields each item after `count` more items have been taken from the iterator or it ended."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def describe_settings(
    config: EncoderConfig,
    tokenizer: TextTokenizer,
    max_tokens: Mapping[Side, int],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns all settings that an embedder's vectors depend on, as plain values."""
    return {
        'max_tokens_x': max_tokens['x'],
        'max_tokens_y': max_tokens['y'],
        'truncation': 'end',
        **tokenizer.describe(),
        'pooling': POOLINGS[config.pooling].description,
        'dtype': config.compute_dtype.name,
        'tokenizer': tokenizer.fingerprint,
    } | dict(origin)
