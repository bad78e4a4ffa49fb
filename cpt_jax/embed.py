"""Texts -> vectors: all that evaluation, search and serving see of a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from cpt_jax import checkpoint
from cpt_jax.mesh import batch_sharding, batch_shards, make_mesh, on_mesh
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.shape import Shape
from cpt_jax.tokenizer import DELIMITERS, Side, Tokenizer


class Embedder:
    """Turns texts into unit vectors on every device of a mesh.

    Attributes:
      model_name: `run@step`, by the name of the run's directory.
      settings: all that its vectors depend on, and where its parameters come from.
      workdir: of the run that it comes from; None where it does not.
    """

    # Columns computed at once on one device: enough to keep it busy, small enough for any.
    TOKENS = 1 << 13

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        max_tokens: Mapping[Side, int],
        model_name: str = '',
        workdir: Path | None = None,
        origin: Mapping[str, Any] | None = None,
    ):
        self.encoder, self.model_name, self.workdir = encoder, model_name, workdir
        self._tokenizer, self._mesh, self._max_tokens = tokenizer, mesh, dict(max_tokens)
        self._encode = jax.jit(_encode)
        self.settings = {
            'max_tokens_x': self._max_tokens['x'],
            'max_tokens_y': self._max_tokens['y'],
            'truncation': 'end',
            'delimiters': {'x': DELIMITERS[:2], 'y': DELIMITERS[2:]},
            'pooling': 'state at the closing delimiter, after the final norm',
            'dtype': encoder.shape.compute_dtype.name,
            'tokenizer': tokenizer.fingerprint,
        } | dict(origin or {})

    def __call__(self, texts: Sequence[str], side: Side, progress: str = '', between: Callable[[], None] | None = None) -> np.ndarray:
        """float32[n, D]: the unit vector of each text, wrapped in its side's delimiters.

        Args:
          texts: n texts of any length; what is over the side's maximum is cut off.
          side: 'x' for queries, 'y' for what they look for.
          progress: a word for a progress bar; none without.
          between: called after each batch of texts; what it raises ends it.
        """
        vectors_NxD = np.zeros((len(texts), self.encoder.shape.width), np.float32)
        with tqdm(total=len(texts), desc=progress, unit='text', disable=None if progress else True) as bar, jax.set_mesh(self._mesh):
            for places, rows, length in self._batches(texts, side):
                vectors_NxD[places] = self._compute(rows, length)[: len(places)]
                bar.update(len(places))
                if between:
                    between()
        return vectors_NxD

    def _batches(self, texts: Sequence[str], side: Side) -> Iterator[tuple[np.ndarray, list[np.ndarray], int]]:
        """(places in the input, their tokens, row length): texts of about one length together, longest first.

        Row lengths are powers of two and each has one number of rows, so a few programs are compiled whatever comes.
        """
        tokens = self._tokenizer.encode(texts, side, self._max_tokens[side])
        order = np.argsort([-len(text) for text in tokens], kind='stable')
        while len(order):
            length = min(max(16, 1 << (len(tokens[order[0]]) - 1).bit_length()), self.encoder.shape.max_length)
            size = self._rows(length)
            yield order[:size], [tokens[place] for place in order[:size]], length
            order = order[size:]

    def _rows(self, length: int) -> int:
        return max(1, self.TOKENS // length) * batch_shards(self._mesh)

    def _compute(self, tokens: list[np.ndarray], length: int) -> np.ndarray:
        rows = self._rows(length)
        tokens_RxS, segments_RxS = np.zeros((2, rows, length), np.int32)
        eos_Rx1 = np.zeros((rows, 1), np.int32)
        here = np.arange(rows) % (rows // batch_shards(self._mesh))  # an EOS place counts within its device's rows
        for row, text in enumerate(tokens):
            tokens_RxS[row, : len(text)], segments_RxS[row, : len(text)] = text, 1
            eos_Rx1[row] = here[row] * length + len(text) - 1
        positions_RxS = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
        sharding = batch_sharding(self._mesh)
        arrays = [
            jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for array in (tokens_RxS, segments_RxS, positions_RxS, eos_Rx1)
        ]
        return np.asarray(self._encode(self.encoder, *arrays))


def _encode(encoder: Encoder, *rows: jax.Array) -> jax.Array:
    """float32[R, D] on every device: each process gets all vectors."""
    return jax.reshard(encoder(*rows)[:, 0], P())


def load_embedder(reference: str) -> Embedder:
    """Loads a model for embedding, onto all devices.

    Args:
      reference: a run's directory, or `run@step`; without a step the latest checkpoint.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    directory, step = checkpoint.find(reference, '--model')
    about = checkpoint.read_about(directory, step)
    config: Mapping[str, Any] = about['config']
    tokenizer = checkpoint.load_tokenizer_of(directory, step)
    mesh = make_mesh()
    here = {'attention': 'auto', 'layer_loop': 'auto'}  # whatever was chosen for the machine that it was trained on
    shape = Shape(vocab_size=tokenizer.vocab_size, **config['model'] | here).on(mesh.devices.flat[0].platform)
    with jax.set_mesh(mesh):
        abstract = on_mesh(jax.eval_shape(lambda: Encoder(shape, nnx.Rngs(0))), mesh)
        encoder = checkpoint.load_params(directory, step, {'encoder': abstract})['encoder']
    max_tokens: dict[Side, int] = {'x': config['data']['max_tokens_x'], 'y': config['data']['max_tokens_y']}
    origin = {
        'step': step,
        'saved': checkpoint.saved_at(directory, step),
        'code': about['code'],
        'trained_on': config['data']['sources'],
    }
    return Embedder(encoder, tokenizer, mesh, max_tokens, f'{directory.parent.name}@{step}', directory.parent, origin)
