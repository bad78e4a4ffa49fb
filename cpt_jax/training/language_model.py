"""The objective of a language model: each token is foretold from those before it. What cpt and
PromptEOL start from.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch, DocumentTokens, Layout, Tokens, pack_group
from cpt_jax.data.mixture import make_sources
from cpt_jax.data.packing import rows_needed
from cpt_jax.data.pairs import Pair, Source, spread_over
from cpt_jax.data.sources.documents import DocumentSource
from cpt_jax.data.sources.text import TokenCounter
from cpt_jax.loss.infonce import InfoNCE, Metrics
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import language_flops
from cpt_jax.model.language import check_language, foretell, foretold
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import as_json, build, defaults_of
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import placed
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from cpt_jax.text.tokenizer import DELIMITERS, Tokenizer
from cpt_jax.training.chunks import Rows, in_chunks
from cpt_jax.training.objective import HeldOut, Params, Scorer
from cpt_jax.training.sections import Data


class LanguageParams(Params):
    """All that is trained."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of the next token, in nats, over all foretold tokens of the global batch; see
    `Objective`.

    The delimiters of contrastive training are no part of it: no text has them, and they are no
    candidates.

    Attributes:
      unigram: held-out bits per byte of a unigram byte model, which any language model must beat;
        nan where nothing is held out.
    """

    unigram: float = float('nan')

    name = 'lm'
    next_command = 'launch/train.py --config CONFIG --config.init_from'
    marks_boundaries = True
    form = 'next token'

    @classmethod
    def from_config(cls, config: Mapping[str, Any], data: Data) -> 'LanguageModel':
        """Returns the objective of a config.

        Raises:
          UserError: the config sets a key that only contrastive training has.
        """
        build(InfoNCE, 'loss', config['loss'])
        if config['lora'].get('rank'):
            raise UserError(
                f'lora.rank={config["lora"]["rank"]}: objective=lm trains all parameters; set it '
                f'to 0'
            )
        if config['prompt']['template']:
            raise UserError('prompt.template: objective=lm reads texts as they are; leave it empty')
        if data.negatives:
            raise UserError(
                f'data.negatives={data.negatives}: objective=lm has no negatives; set it to 0'
            )
        defaults = defaults_of(InfoNCE)
        for key, value in as_json(config['loss']).items():
            if value != defaults[key]:
                raise UserError(
                    f'loss.{key}={value!r}: objective=lm has no contrastive loss; leave it as in '
                    f'configs/base.py'
                )
        return cls()

    def check(self, config: EncoderConfig) -> None:
        check_language(config)

    def check_lengths(self, data: Data, config: EncoderConfig, around: int, what: str) -> None:
        if not 2 < data.row_length <= config.max_length:
            raise UserError(
                f'data.row_length={data.row_length} must be over 2 and at most '
                f'model.max_length={config.max_length}'
            )

    def inherit_architecture(self, origin: Origin) -> tuple[dict[str, Any], int] | None:
        """That of a pretrained model; from an earlier run come parameters of the config's own
        architecture.
        """
        return origin.architecture if isinstance(origin, Pretrained) else None

    def load_sources(
        self, sections: Mapping[str, Mapping[str, Any]], split: str, tokenizer: TokenCounter
    ) -> tuple[dict[str, Source], dict[str, float]]:
        """The texts of each source, in place of its pairs."""
        # A document of one piece makes no pair, but is a text.
        sections = {
            name: {**section, 'min_pieces': 1} if section.get('kind') == 'text' else section
            for name, section in sections.items()
        }
        return make_sources(sections, split, tokenizer, DocumentSource)

    def make_reader(
        self, sources: Sequence[Source], tokenizer: Tokenizer | PromptTokenizer, data: Data
    ) -> DocumentTokens:
        assert isinstance(tokenizer, Tokenizer)  # from_config refuses templates
        return DocumentTokens(sources, tokenizer, data.row_length)

    def with_baseline(self, reader: Tokens, heldout: Sequence[Pair]) -> 'LanguageModel':
        """The objective with the held-out bits per byte of a unigram byte model."""
        return LanguageModel(heldout_unigram_bits(reader, heldout)) if heldout else self

    def own_parameters(self, params: LanguageParams) -> dict[str, Any]:
        return {}

    def init(self, config: EncoderConfig, rngs: nnx.Rngs) -> LanguageParams:
        return LanguageParams(config, rngs)

    def __call__(
        self, params: LanguageParams, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        def sums(encoder: Encoder, rows: Rows, keys_RxS: jax.Array | None) -> jax.Array:
            tokens_RxS, segments_RxS, positions_RxS, _ = rows
            return sums_of(encoder, tokens_RxS, segments_RxS, positions_RxS, keys_RxS)

        totals_3 = in_chunks(params.encoder, batch, key, sums, lambda totals_Cx3: totals_Cx3.sum(0))
        nats, right, tokens = totals_3 / jnp.maximum(totals_3[2], 1)
        pairs = jnp.sum(batch.ids_CxBxT > 0, dtype=jnp.float32)
        return nats, jax.lax.stop_gradient(
            {'accuracy': right, 'foretold': totals_3[2], 'pairs': pairs}
        )

    def clip(self, params: LanguageParams) -> None:
        pass

    def longest(self, data: Data) -> Sequence[int]:
        return [data.row_length]

    def flops(self, config: EncoderConfig, layout: Layout, pairs: int, lora: LoRA) -> int:
        return language_flops(config, layout.tokens, layout.row_length)

    def scorer(self, held_out: HeldOut, params: LanguageParams) -> Scorer:
        tokenizer = held_out.tokenizer
        assert isinstance(tokenizer, Tokenizer)  # from_config refuses templates
        texts = [pair.x for pair in held_out.pairs]
        tokens = tokenizer.encode_language(texts, held_out.data.row_length)
        text = HeldoutText(tokens, tokenizer, held_out.layout, held_out.mesh)
        return lambda params, between: (
            text.scores(params.encoder, between) | {'unigram_bits_per_byte': self.unigram}
        )

    def batch_line(self, pairs: int, data: Data) -> str:
        return f'{pairs:,} texts of up to {data.row_length:,} tokens'

    def heldout_line(self, pairs: int) -> str:
        return f'{pairs:,} texts; a unigram byte model needs {self.unigram:.3f} bits a byte'

    def figures(self, row: Mapping[str, float]) -> str:
        return f'loss {row["loss"]:.3f} nats a token, {row["accuracy"]:.1%} right'

    def line(self, row: Mapping[str, float]) -> str:
        return (
            f'loss {row["loss"]:.3f} nats a token, held-out {row["heldout_loss"]:.3f}, '
            f'{row["heldout_bits_per_byte"]:.3f} bits a byte (unigram bytes: {self.unigram:.3f}), '
            f'{row["heldout_accuracy"]:.1%} right'
        )


def sums_of(
    encoder: Encoder,
    tokens_RxS: jax.Array,
    segments_RxS: jax.Array,
    positions_RxS: jax.Array,
    keys_RxS: jax.Array | None = None,
) -> jax.Array:
    """float32[3]: nats, how many tokens are foretold right, and how many are foretold, in all
    rows.
    """
    ids = encoder.config.vocab_size - len(DELIMITERS)
    losses_RxS, right_RxS = foretell(
        encoder, tokens_RxS, segments_RxS, positions_RxS, keys_RxS, ids
    )
    there_RxS = foretold(segments_RxS, positions_RxS)
    return jnp.stack(
        [jnp.sum(x_RxS.astype(jnp.float32)) for x_RxS in (losses_RxS, right_RxS, there_RxS)]
    )


class HeldoutText:
    """Some texts on which a language model is measured, packed into rows.

    Bits per byte are comparable between tokenizers: they count the UTF-8 bytes of what the ids
    stand for. Bytes that were cut off do not count, and neither do spaces and capitals that a lossy
    tokenizer does not keep.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        layout: Layout,
        mesh: jax.sharding.Mesh,
    ):
        """`layout` is that of a training step, whose rows are computed at a time."""
        lengths = np.array([len(text) for text in tokens])
        at_once = layout.parts * layout.rows
        rows = -(-rows_needed(lengths, layout.row_length) // at_once) * at_once
        whole = Layout(1, 1, len(tokens), 1, rows, layout.row_length)
        group = pack_group([[text] for text in tokens], np.ones((len(tokens), 1), np.int32), whole)
        self._parts = [
            [array[k : k + at_once] for array in group[:3]] for k in range(0, rows, at_once)
        ]
        self._bytes = sum(len(text) for text in bytes_of(tokens, tokenizer))
        self._mesh = mesh
        self._sums = jax.jit(sums_of, out_shardings=jax.sharding.NamedSharding(mesh, P()))

    def scores(self, encoder: Encoder, between: Callable[[], None]) -> dict[str, float]:
        """Of an encoder; `between` is called after each part of the rows, and may raise to end
        it.
        """
        totals = np.zeros(3)
        for part in self._parts:
            rows = placed(self._mesh, *part)
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
    """The UTF-8 bytes that the ids of each text stand for. Those of a character that was cut in two
    are left out: a few a text too few.
    """
    around = tokenizer.boundaries
    for ids in tokens:
        yield tokenizer.decode(i for i in ids.tolist() if i not in around).rstrip('\ufffd').encode()


def unigram_bits(training: Iterable[bytes], heldout: Iterable[bytes]) -> float:
    """Bits per byte of held-out texts under the shares of the bytes in training texts, each counted
    once more (add-one smoothing).
    """
    seen_256, met_256 = (
        np.bincount(np.frombuffer(b''.join(texts), np.uint8), minlength=256)
        for texts in (training, heldout)
    )
    return float(
        -met_256 @ np.log2((seen_256 + 1) / (seen_256.sum() + 256)) / max(met_256.sum(), 1)
    )


def heldout_unigram_bits(reader: Tokens, heldout: Sequence[Pair], sample: int = 4096) -> float:
    """Returns the held-out bits per byte of a unigram byte model of up to `sample` texts of each
    source.
    """
    tokenizer = reader.tokenizer
    assert isinstance(tokenizer, Tokenizer)  # from_config refuses templates
    seen = [
        text
        for source in range(len(reader.sources))
        for (text,) in reader(source, spread_over(len(reader.sources[source]), sample))[0]
    ]
    met = [text for (text,), _ in reader.encode(heldout)]
    return unigram_bits(bytes_of(seen, tokenizer), bytes_of(met, tokenizer))
