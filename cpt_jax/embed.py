"""Texts -> vectors: all that evaluation, search and serving see of a model."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from cpt_jax import checkpoint
from cpt_jax.base_model import load_adapted
from cpt_jax.errors import UserError
from cpt_jax.mesh import batch_shards, make_mesh, on_mesh, placed
from cpt_jax.model.dense import Dense, load_dense
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.families.load import load_encoder
from cpt_jax.model.prefix import Prefix, Prefixes, can_share, common_beginning
from cpt_jax.model.shape import Shape
from cpt_jax.pretrained import Pretrained, is_pretrained, open_pretrained
from cpt_jax.pretrained_tokenizer import OwnTokenizer
from cpt_jax.prompt import Prompt, Representation, configured
from cpt_jax.prompt_tokenizer import PromptTokenizer, beginning
from cpt_jax.text_rows import encode_rows, row_length_of, rows_at_once
from cpt_jax.tokenizer import Side, Tokenizer

T = TypeVar('T')

POOLINGS = {
    'eos': 'state at the closing delimiter, or without one at the last token, after the final norm',
    'first': 'state at the first token, after the final norm',
    'mean': 'mean of the states of all tokens, after the final norm',
}


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

    A row holds one text, and texts of about one length are computed together, so that few columns are padding. Packed rows, as in
    training, would be one program for all lengths, but compute scores between texts that do not see each other. Processor seconds on
    two CPU cores, for two layers of width 384 (medians of three turns; powers of two: row lengths of 16, 32, .., 8,192 columns at once):

                                                            powers of two   as here   packed
      130 documents of scifact, cut at 512 tokens                    12.6       8.4     10.3
      1,500 queries of scifact and cosqa, 28 tokens each              5.8       3.1      3.0

    What a causal model's texts all begin with (demonstrations, the words of a template) is computed once, with the vectors that the whole
    texts have (model/prefix.py).

    Attributes:
      model_name: `run@step`, by the name of the run's directory; of a pretrained model, the directory's name.
      settings: all that its vectors depend on, and where its parameters come from.
      workdir: of the run that it comes from; None where it does not.
      width: of its vectors.
      tokens: of the texts embedded so far. columns: what was computed for them, padding included; shared: tokens that were not, as a prefix
        stood for them.
    """

    # Texts tokenised and sorted by length at once, for each part of the mesh that holds rows of its own.
    WINDOW = 1 << 12
    # Tokens that all texts of a window begin with, from which on they are computed once; and those of a text behind them at most, as all
    # scores of attention are held there.
    SHARED, BEHIND = 16, 512
    # Batches that wait on the device while the vectors of the one before are read.
    AHEAD = 2

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
    ):
        if max(max_tokens.values()) > encoder.shape.max_length:
            raise UserError(f'max_tokens={max(max_tokens.values())}: the model reads {encoder.shape.max_length} tokens at most')
        self.encoder, self.model_name, self.workdir = encoder, model_name, workdir
        self.width = len(dense[-1].weight_ExD) if dense else encoder.shape.embedding_width
        self._dense = tuple(dense)
        self.tokens = self.columns = self.shared = 0
        self._tokenizer, self._mesh, self._max_tokens = tokenizer, mesh, dict(max_tokens)
        self._encode, self._shares = jax.jit(encode_rows), can_share(encoder.shape)
        self.settings = _settings(encoder.shape, tokenizer, max_tokens, origin or {})

    @property
    def prompt(self) -> Prompt | None:
        """What texts stand in; None where that is no template."""
        return self._tokenizer.prompt if isinstance(self._tokenizer, PromptTokenizer) else None

    def reading(self, prompt: Prompt, share: bool = True) -> 'Embedder':
        """The same model, parameters and compiled programs, of texts in another template or behind other demonstrations.

        Args:
          share: compute what all texts begin with once, where the model allows it; without, for measurements.

        Raises:
          UserError: the model's texts do not stand in a template, or the words around a text are more than the model reads.
        """
        if not isinstance(self._tokenizer, PromptTokenizer):
            raise UserError('--model: its texts stand in no template: give --representation prompteol, with a causal language model')
        other = copy.copy(self)
        other._tokenizer = self._tokenizer.reading(prompt)
        other._tokenizer.encode([''], 'x', min(self._max_tokens.values()))
        other.settings = self.settings | other._tokenizer.describe() | {'tokenizer': other._tokenizer.fingerprint}
        other._shares, other.tokens, other.columns, other.shared = share and can_share(self.encoder.shape), 0, 0, 0
        return other

    @property
    def window(self) -> int:
        """Texts that are tokenised and sorted by length at once: embedding so many at a time costs nothing."""
        return self.WINDOW * batch_shards(self._mesh)

    def __call__(self, texts: Sequence[str], side: Side, progress: str = '', between: Callable[[], None] | None = None) -> np.ndarray:
        """float32[n, D]: the unit vector of each text, wrapped in its side's delimiters.

        Args:
          texts: n texts of any length; what is over the side's maximum is cut off.
          side: 'x' for queries, 'y' for what they look for.
          progress: a word for a progress bar; none without.
          between: called after each batch of texts; what it raises ends it.
        """
        nothing_0xD = np.zeros((0, self.width), np.float32)
        return np.concatenate([nothing_0xD, *self.stream(texts, side, progress, len(texts), between)])

    def stream(
        self, texts: Iterable[str], side: Side, progress: str = '', total: int | None = None, between: Callable[[], None] | None = None
    ) -> Iterator[np.ndarray]:
        """The same for more texts than memory holds: float32[n, D] for the next n texts, again and again.

        Args:
          texts: read ahead, in a thread.
          total: their number, where it is known: for the progress bar.
          side, progress, between: as above.
        """
        with tqdm(total=total, desc=progress, unit='text', disable=None if progress else True) as bar:
            for batch in _late(self._started(texts, side), self.AHEAD):
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
            shared = shared if shared >= self.SHARED else 0
            lengths_N = np.array([len(text) for text in tokens])
            window_NxD = np.empty((len(tokens), self.width), np.float32)
            left = len(tokens)
            near_N = (lengths_N > shared) & (lengths_N - shared <= self.BEHIND) & (shared > 0)
            for place in np.flatnonzero(near_N):  # none where nothing is shared
                near_N[place] = np.array_equal(tokens[place][:shared], opening[:shared])
            for some, skipped in ((np.flatnonzero(~near_N), 0), (np.flatnonzero(near_N), shared)):
                for places, rows, row_length in self._batches(lengths_N[some] - skipped, skipped):
                    places = some[places]
                    left -= len(places)
                    self.tokens, self.shared = self.tokens + skipped * len(places), self.shared + skipped * len(places)
                    prefix = prefix_of(opening[:skipped]) if skipped else None
                    vectors_RxD = self._compute([tokens[place][skipped:] for place in places], rows, row_length, prefix)
                    yield _Batch(window_NxD, places, vectors_RxD, not left)

    def _windows(self, texts: Iterable[str], side: Side) -> Iterator[list[np.ndarray]]:
        """The tokens of the next texts, again and again; made in a thread while the caller is busy with those before.

        Those of two short texts stand first: from them is read what texts begin with, whichever stand in a window.
        """
        remaining, size = iter(texts), self.window

        def read() -> list[np.ndarray]:
            return self._tokenizer.encode(['', 'A', *islice(remaining, size)], side, self._max_tokens[side])

        with ThreadPoolExecutor(1) as thread:
            upcoming = thread.submit(read)
            while len(tokens := upcoming.result()) > 2:
                upcoming = thread.submit(read)
                yield tokens

    def _batches(self, lengths_N: np.ndarray, before: int = 0) -> Iterator[tuple[np.ndarray, int, int]]:
        """(places of its texts, rows, row length) of each batch: texts of about one length together, longest first.

        Behind a prefix, of `before` tokens, scores with it are held too: the longer it is, the fewer rows at once.
        """
        order = np.argsort(-lengths_N, kind='stable')
        while len(order):
            row_length = row_length_of(int(lengths_N[order[0]]), self.encoder.shape.max_length)
            rows = self._rows(row_length * max(1, -(-before // self.BEHIND)), len(order))
            yield order[:rows], rows, row_length
            order = order[rows:]

    def _rows(self, row_length: int, texts: int) -> int:
        """As many as a device computes at once, or where fewer texts are left, that divided by a power of 4."""
        parts = batch_shards(self._mesh)
        rows = rows_at_once(self._mesh.devices.flat[0].platform, row_length)
        while rows // 4 * parts >= texts:
            rows //= 4
        return rows * parts

    def _compute(self, tokens: Sequence[np.ndarray], rows: int, row_length: int, prefix: Prefix | None = None) -> jax.Array:
        """Starts to compute vectors_RxD of some texts, the first rows; the other rows are empty. Texts follow the prefix."""
        lengths_R = np.ones(rows, np.int64)
        lengths_R[: len(tokens)] = [len(text) for text in tokens]
        self.tokens, self.columns = self.tokens + sum(map(len, tokens)), self.columns + rows * row_length
        tokens_RxS = np.zeros((rows, row_length), np.int32)
        for row_S, text in zip(tokens_RxS, tokens, strict=False):
            row_S[: len(text)] = text
        within_part = np.arange(rows) % (rows // batch_shards(self._mesh))
        eos_Rx1 = (within_part * row_length + lengths_R - 1).astype(np.int32)[:, None]
        with jax.set_mesh(self._mesh):
            return self._encode(self.encoder, self._dense, prefix, *placed(self._mesh, tokens_RxS, eos_Rx1))


def _late(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, each when `count` more have been taken, or there are no more."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def load_embedder(
    reference: str,
    *,
    pooling: str = '',
    dtype: str = '',
    max_tokens: int = 0,
    representation: Representation = Representation(),  # noqa: B008 (it is never changed)
    fsdp: int = 1,
) -> Embedder:
    """Loads a model for embedding, onto all devices.

    Args:
      reference: a run's directory, or `run@step`; without a step the latest checkpoint. Or a directory with a pretrained model.
      pooling: of a pretrained directory that says none; see `open_pretrained`.
      dtype: of activations: auto, float32 or bfloat16; '': as the run's config says, auto for a pretrained model.
      max_tokens: of the texts of both sides, with all that stands around them; 0: as the model says.
      representation: what texts stand in and which state counts, of a causal language model or a run that was trained with a template.
      fsdp: devices that share one copy of the parameters, each a part of it.

    Raises:
      UserError: there is no such run or checkpoint; or it cannot be read, says its own pooling, or has no use for the representation.
    """
    if pooling and not representation.is_own:
        raise UserError(f'--pooling {pooling}: a --representation or --template says which states count; leave the flag out')
    if fsdp > 1 and jax.device_count() % fsdp:
        raise UserError(f'--fsdp {fsdp}: the {jax.device_count():,} devices here are no multiple of it')
    mesh = make_mesh(fsdp=fsdp)
    if is_pretrained(reference):
        return _load_pretrained(reference, pooling, dtype or 'auto', max_tokens, representation, mesh)
    if pooling:
        checkpoint.find(reference, '--model')  # where it is neither, that is the mistake
        raise UserError(f'--pooling {pooling}: {reference} is a run, whose config says its pooling; leave the flag out')
    run = _open_run(reference, dtype, max_tokens, representation)
    run.shape.check_mesh(mesh)
    if run.about['config'].get('lora', {}).get('rank'):
        encoder = load_adapted(run.directory, run.step, run.about, run.shape, mesh, run.tokenizer.added)
    else:
        with jax.set_mesh(mesh):
            abstract = on_mesh(jax.eval_shape(lambda: Encoder(run.shape, nnx.Rngs(0))), mesh)
            encoder = checkpoint.load_params(run.directory, run.step, {'encoder': abstract})['encoder']
    return Embedder(encoder, run.tokenizer, mesh, run.limits, f'{run.directory.parent.name}@{run.step}', run.directory.parent, run.origin)


def read_settings(reference: str, representation: Representation = Representation()) -> dict[str, Any]:  # noqa: B008 (as above)
    """The `settings` of the embedder that `load_embedder` makes of a run's checkpoint, without its parameters.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    run = _open_run(reference, '', 0, representation)
    return _settings(run.shape, run.tokenizer, run.limits, run.origin)


class _OpenRun(NamedTuple):
    """All of a checkpoint but its parameters."""

    directory: Path
    step: int
    about: checkpoint.About
    shape: Shape
    tokenizer: Tokenizer | PromptTokenizer
    limits: dict[Side, int]
    origin: dict[str, Any]


def _open_run(reference: str, dtype: str, max_tokens: int, representation: Representation) -> _OpenRun:
    directory, step = checkpoint.find(reference, '--model')
    about = checkpoint.read_about(directory, step)
    if checkpoint.objective_of(about) == 'lm' and representation.is_own:
        raise UserError(
            f'--model {reference}: a language model (objective=lm), whose states were not trained to be vectors: train contrastively from'
            f' it (launch/train.py --config.init_from={reference}), or give --representation prompteol'
        )
    config: Mapping[str, Any] = about['config']
    tokenizer, changes = _reading(reference, about, checkpoint.load_tokenizer_of(directory, step), representation)
    here = {'attention': 'auto', 'layer_loop': 'auto'}  # whatever was chosen for the machine that it was trained on
    here |= ({'dtype': dtype} if dtype else {}) | changes
    shape = Shape(vocab_size=tokenizer.vocab_size, **config['model'] | here).on(jax.devices()[0].platform)
    limits: dict[Side, int] = {'x': max_tokens or config['data']['max_tokens_x'], 'y': max_tokens or config['data']['max_tokens_y']}
    if isinstance(tokenizer, PromptTokenizer):  # a run's own limits are those of its training, where texts may be cut short on purpose
        limits = dict.fromkeys(limits, max_tokens or shape.max_length)
    origin = {
        'step': step,
        'saved': checkpoint.saved_at(directory, step),
        'code': about['code'],
        'trained_on': config['data']['sources'],
        **({'lora': config['lora'], 'base': about['base']} if 'base' in about else {}),
    }
    return _OpenRun(directory, step, about, shape, tokenizer, limits, origin)


def _settings(
    shape: Shape, tokenizer: Tokenizer | OwnTokenizer, max_tokens: Mapping[Side, int], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the vectors of an embedder depend on, as plain values."""
    return {
        'max_tokens_x': max_tokens['x'],
        'max_tokens_y': max_tokens['y'],
        'truncation': 'end',
        **tokenizer.describe(),
        'pooling': POOLINGS[shape.pooling],
        'dtype': shape.compute_dtype.name,
        'tokenizer': tokenizer.fingerprint,
    } | dict(origin)


def _reading(
    reference: str, about: checkpoint.About, tokenizer: Tokenizer, representation: Representation
) -> tuple[Tokenizer | PromptTokenizer, dict[str, Any]]:
    """What makes ids of a run's texts; and what changes in its shape."""
    own = configured(about['config'].get('prompt') or {'template': ''})
    if representation.is_own and not own:
        if representation.demonstrations:
            raise UserError(f'--demonstration: {reference} was trained between delimiters, and has no template to show them in')
        return tokenizer, {}
    if not own and about['config'].get('objective') != 'lm':
        raise UserError(f'--representation: {reference} was trained between delimiters; leave --representation and --template out')
    prompt = representation.prompt(own.template if own else '')
    tokenizer = PromptTokenizer(tokenizer, prompt, beginning(about, tokenizer))
    return tokenizer, {} if representation.is_own else {'pooling': representation.pooling}


def _load_pretrained(
    reference: str, pooling: str, dtype: str, max_tokens: int, representation: Representation, mesh: jax.sharding.Mesh
) -> Embedder:
    """A model with its own tokens, prompts and pooling, or with those of a representation; weights stay in the dtype of their files."""
    found = open_pretrained(reference, pooling)
    tokenizer, shape_of = found.tokenizer, found.shape
    if representation.is_own and representation.demonstrations:
        raise UserError('--demonstration: give --representation prompteol or a --template that they are shown in')
    if not representation.is_own:
        _check_language_model(found)
        tokenizer = PromptTokenizer(found.tokenizer, representation.prompt(), found.tokenizer.begin)
        shape_of = {**found.shape, 'pooling': representation.pooling}
    shape = Shape(vocab_size=found.rows, dtype=dtype, **shape_of).on(mesh.devices.flat[0].platform)
    shape.check_mesh(mesh)
    encoder = load_encoder(found.family, found.files, shape, mesh)
    dense = load_dense(found.dense, shape.embedding_width, mesh)
    origin = {'trained_on': {}} | ({'dense': [list(layer.weight_ExD.shape[::-1]) for layer in dense]} if dense else {})
    longest = max_tokens or found.max_tokens
    limits: dict[Side, int] = {'x': longest, 'y': longest}
    return Embedder(encoder, tokenizer, mesh, limits, found.directory.name, origin=origin, dense=dense)


def _check_language_model(found: Pretrained) -> None:
    """Raises UserError for a model in which the last token's state does not stand for the next word."""
    kind = found.config['model_type']
    if not found.shape.get('causal', True):
        raise UserError(
            f'--representation: {found.directory} ({kind}) is no causal language model: it has no next word; leave the flag out'
        )
    if found.dense:
        raise UserError(
            f'--representation: {found.directory} has Dense modules behind its pooling, which go with its own; leave the flag out'
        )
