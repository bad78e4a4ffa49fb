"""The objective of a language model: each token is foretold from those before it. What cpt and PromptEOL start from."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch, Layout, pack_group
from cpt_jax.data.packing import rows_needed
from cpt_jax.loss.infonce import Metrics
from cpt_jax.mesh import batch_sharding
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import language_flops
from cpt_jax.model.language import check_language, foretell, foretold
from cpt_jax.model.lora import LoRA
from cpt_jax.model.shape import Shape
from cpt_jax.tokenizer import DELIMITERS, Tokenizer
from cpt_jax.train.objective import Scorer
from cpt_jax.train.step import in_chunks

if TYPE_CHECKING:
    from cpt_jax.train.setup import Data, Run


class Params(nnx.Module):
    """All that is trained."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.encoder = Encoder(shape, rngs)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of the next token, in nats, over all foretold tokens of the global batch; see `Objective`.

    The delimiters of contrastive training are no part of it: no text has them, and they are no candidates.

    Attributes:
      unigram: held-out bits per byte of a unigram byte model, which any language model must beat; nan where nothing is held out.
    """

    unigram: float = float('nan')

    name = 'lm'
    form = 'next token'

    def check(self, shape: Shape) -> None:
        check_language(shape)

    def init(self, shape: Shape, rngs: nnx.Rngs) -> Params:
        return Params(shape, rngs)

    def __call__(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        def sums(encoder: Encoder, rows: tuple[jax.Array, ...], keys_RxS: jax.Array | None) -> jax.Array:
            return sums_of(encoder, *rows[:3], keys_RxS)

        totals_3 = in_chunks(params.encoder, batch, key, sums, lambda totals_Cx3: totals_Cx3.sum(0))
        nats, right, tokens = totals_3 / jnp.maximum(totals_3[2], 1)
        pairs = jnp.sum(batch.ids_CxBxT > 0, dtype=jnp.float32)
        return nats, jax.lax.stop_gradient({'accuracy': right, 'foretold': totals_3[2], 'pairs': pairs})

    def clip(self, params: Params) -> None:
        pass

    def longest(self, data: 'Data') -> Sequence[int]:
        return [data.row_length]

    def flops(self, shape: Shape, layout: Layout, pairs: int, lora: LoRA) -> int:
        return language_flops(shape, layout.tokens, layout.row_length)

    def scorer(self, run: 'Run', params: Params) -> Scorer:
        tokens = run.tokenizer.encode_language([pair.x for pair in run.heldout], run.data.row_length)
        text = HeldoutText(tokens, run.tokenizer, run.layout, run.mesh)
        return lambda params, between: text.scores(params.encoder, between) | {'unigram_bits_per_byte': self.unigram}

    def batch_line(self, pairs: int, data: 'Data') -> str:
        return f'{pairs:,} texts of up to {data.row_length:,} tokens'

    def heldout_line(self, pairs: int) -> str:
        return f'{pairs:,} texts; a unigram byte model needs {self.unigram:.3f} bits a byte'

    def figures(self, row: Mapping[str, float]) -> str:
        return f'loss {row["loss"]:.3f} nats a token, {row["accuracy"]:.1%} right'

    def line(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} nats a token, held-out {row["heldout_loss"]:.3f}, {row["heldout_bits_per_byte"]:.3f} bits a byte'
            f' (unigram bytes: {self.unigram:.3f}), {row["heldout_accuracy"]:.1%} right'
        )


def sums_of(
    encoder: Encoder, tokens_RxS: jax.Array, segments_RxS: jax.Array, positions_RxS: jax.Array, keys_RxS: jax.Array | None = None
) -> jax.Array:
    """float32[3]: nats, how many tokens are foretold right, and how many are foretold, in all rows."""
    ids = encoder.shape.vocab_size - len(DELIMITERS)
    losses_RxS, right_RxS = foretell(encoder, tokens_RxS, segments_RxS, positions_RxS, keys_RxS, ids)
    there_RxS = foretold(segments_RxS, positions_RxS)
    return jnp.stack([jnp.sum(x_RxS.astype(jnp.float32)) for x_RxS in (losses_RxS, right_RxS, there_RxS)])


class HeldoutText:
    """Some texts on which a language model is measured, packed into rows.

    Bits per byte are comparable between tokenizers: they count the UTF-8 bytes of what the ids stand for. Bytes that were cut off do not
    count, and neither do spaces and capitals that a lossy tokenizer does not keep.
    """

    def __init__(self, tokens: Sequence[np.ndarray], tokenizer: Tokenizer, layout: Layout, mesh: jax.sharding.Mesh):
        """`layout` is that of a training step, whose rows are computed at a time."""
        lengths = np.array([len(text) for text in tokens])
        at_once = layout.parts * layout.rows
        rows = -(-rows_needed(lengths, layout.row_length) // at_once) * at_once
        whole = Layout(1, 1, len(tokens), 1, rows, layout.row_length)
        group = pack_group([[text] for text in tokens], np.ones((len(tokens), 1), np.int32), whole)
        self._parts = [[array[k : k + at_once] for array in group[:3]] for k in range(0, rows, at_once)]
        self._bytes = sum(len(text) for text in bytes_of(tokens, tokenizer))
        self._mesh, self._sums = mesh, jax.jit(sums_of, out_shardings=jax.sharding.NamedSharding(mesh, P()))

    def scores(self, encoder: Encoder, between: Callable[[], None]) -> dict[str, float]:
        """Of an encoder; `between` is called after each part of the rows, and may raise to end it."""
        totals, sharding = np.zeros(3), batch_sharding(self._mesh)
        for part in self._parts:
            rows = [jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for array in part]
            with jax.set_mesh(self._mesh):
                totals += np.asarray(self._sums(encoder, *rows), np.float64)
            between()
        nats, right, tokens = totals
        return {
            'heldout_loss': nats / tokens,
            'heldout_bits_per_byte': nats / np.log(2) / self._bytes,
            'heldout_accuracy': right / tokens,
            'heldout_tokens': tokens,
            'heldout_bytes': self._bytes,
        }


def bytes_of(tokens: Iterable[np.ndarray], tokenizer: Tokenizer) -> Iterator[bytes]:
    """The UTF-8 bytes that the ids of each text stand for. Those of a character that was cut in two are left out: a few a text too few."""
    around = tokenizer.boundaries
    for ids in tokens:
        yield tokenizer.decode(i for i in ids.tolist() if i not in around).rstrip('\ufffd').encode()


def unigram_bits(training: Iterable[bytes], heldout: Iterable[bytes]) -> float:
    """Bits per byte of held-out texts under the shares of the bytes in training texts, each counted once more (add-one smoothing)."""
    seen_256, met_256 = (np.bincount(np.frombuffer(b''.join(texts), np.uint8), minlength=256) for texts in (training, heldout))
    return float(-met_256 @ np.log2((seen_256 + 1) / (seen_256.sum() + 256)) / max(met_256.sum(), 1))
