"""The language-model objective: next-token prediction.

The embedding models of cpt and PromptEOL start from such a language model.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from cpt_jax.data.batch import Batch, Layout, pack_group
from cpt_jax.data.cutting import TokenCounter
from cpt_jax.data.equality import resolve_rule
from cpt_jax.data.mixture import make_sources
from cpt_jax.data.packing import count_rows_needed
from cpt_jax.data.pairs import Pair, Source, spread_indices
from cpt_jax.data.source_keys import LOSS_KEYS
from cpt_jax.data.sources.documents import DocumentSource
from cpt_jax.data.token_reader import DocumentTokenReader, TokenReader
from cpt_jax.loss.infonce import InfoNCE, Metrics
from cpt_jax.loss.targets import TargetSizes
from cpt_jax.model.adapters.lora import LoRA
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.model.flops import count_language_model_flops
from cpt_jax.model.language import check_language_model, make_prediction_mask, predict_tokens
from cpt_jax.origin.pretrained import PlannedModel, Pretrained
from cpt_jax.origin.resolve import Origin
from cpt_jax.runs.config import build, get_defaults, to_json_values
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import place_on_mesh
from cpt_jax.text.prompt_tokenizer import TextTokenizer
from cpt_jax.text.tokenizer import DELIMITERS, Tokenizer
from cpt_jax.training.chunks import Rows, map_chunks
from cpt_jax.training.heldout_scores import MainScore
from cpt_jax.training.objective import HeldOut, Params, Scorer
from cpt_jax.training.sections import Data


class LanguageParams(Params):
    """An encoder whose token embeddings are also the output head."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Next-token cross-entropy in nats, averaged over all predicted tokens of the global batch; see
    `Objective`.

    The delimiters of contrastive training are excluded: no text contains them, and they have no
    logits.

    Attributes:
      unigram_bits_per_byte: held-out bits per byte of a unigram byte model, a baseline that any
        language model must beat; nan if no texts are held out.
    """

    unigram_bits_per_byte: float = float('nan')

    name = 'lm'
    next_command = 'launch/train.py --config CONFIG --config.init_from'
    marks_boundaries = True
    main_score = MainScore('heldout_bits_per_byte', 'bits per byte', -1)
    form = 'next token'

    @classmethod
    def from_config(cls, config: Mapping[str, Any], data: Data) -> 'LanguageModel':
        """Returns the objective of a config.

        Raises:
          UserError: the config sets a key that only contrastive training uses.
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
        defaults = get_defaults(InfoNCE)
        for key, value in to_json_values(config['loss']).items():
            if value != defaults[key]:
                raise UserError(
                    f'loss.{key}={value!r}: objective=lm has no contrastive loss; leave it as in '
                    f'configs/base.py'
                )
        for name, section in data.sources.items():
            if found := sorted(LOSS_KEYS & section.keys()):
                raise UserError(
                    f'data.sources.{name}.{found[0]}: objective=lm has no contrastive loss; remove '
                    f'it'
                )
        return cls()

    def check_model(self, config: EncoderConfig) -> None:
        check_language_model(config)
        if config.dense:
            raise UserError('model.dense: objective=lm has no vectors; leave it empty')

    def refuse_unused_keys(self) -> None:
        pass  # an objective without keys of its own

    def check_origin(self, origin: Origin) -> None:
        pass  # every origin that it inherits its architecture from

    def check_lengths(self, data: Data, config: EncoderConfig, around: int, what: str) -> None:
        if not 2 < data.row_length <= config.max_length:
            raise UserError(
                f'data.row_length={data.row_length} must be over 2 and at most '
                f'model.max_length={config.max_length}'
            )

    def inherit_architecture(self, origin: Origin) -> tuple[dict[str, Any], int] | None:
        """Returns the architecture of a pretrained model; None for an earlier run, whose parameters
        must fit the config's own `model` section.
        """
        if isinstance(origin, Pretrained | PlannedModel):
            return origin.model_section_and_vocab_size
        return None

    def load_sources(
        self, data: Mapping[str, Any], split: str, tokenizer: TokenCounter
    ) -> tuple[dict[str, Source], dict[str, float]]:
        """Returns sources of texts instead of pairs, and their weights, by name."""
        # A document of one piece makes no pair, but it is a text to learn from.
        sections = {
            name: {**section, 'min_pieces': 1} if section.get('kind') == 'text' else section
            for name, section in data['sources'].items()
        }
        return make_sources(
            sections,
            split,
            tokenizer,
            DocumentSource,
            resolve_rule(data),
            data.get('verify', False),
        )

    def make_reader(
        self, sources: Sequence[Source], tokenizer: TextTokenizer, data: Data
    ) -> DocumentTokenReader:
        assert isinstance(tokenizer, Tokenizer)  # from_config refuses templates
        return DocumentTokenReader(sources, tokenizer, data.row_length, data.token_cache_bytes)

    def with_baseline(self, reader: TokenReader, heldout: Sequence[Pair]) -> 'LanguageModel':
        """Returns the objective with the held-out bits per byte of a unigram byte model."""
        if not heldout:
            return self
        return LanguageModel(compute_heldout_unigram_bits(reader, heldout))

    def get_own_parameters(self, params: LanguageParams) -> dict[str, Any]:
        return {}

    def init(self, config: EncoderConfig, rngs: nnx.Rngs) -> LanguageParams:
        return LanguageParams(config, rngs)

    def __call__(
        self, params: LanguageParams, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        def compute(encoder: Encoder, rows: Rows, keys_RxS: jax.Array | None) -> jax.Array:
            tokens_RxS, segments_RxS, positions_RxS, _ = rows
            return compute_token_sums(encoder, tokens_RxS, segments_RxS, positions_RxS, keys_RxS)

        totals_3 = map_chunks(
            params.encoder, batch, key, compute, lambda totals_Jx3: totals_Jx3.sum(0)
        )
        loss, accuracy, _ = totals_3 / jnp.maximum(totals_3[2], 1)
        pairs = jnp.sum(batch.ids_JxBxTxZ > 0, dtype=jnp.float32)
        return loss, jax.lax.stop_gradient(
            {'accuracy': accuracy, 'foretold': totals_3[2], 'pairs': pairs}
        )

    def clip(self, params: LanguageParams) -> None:
        pass

    def get_max_lengths(self, data: Data) -> Sequence[int]:
        return [data.row_length]

    def count_ids_per_text(self, data: Data) -> int:
        return 1

    def measure_targets(self, data: Data) -> TargetSizes:
        return TargetSizes()

    def count_step_flops(
        self,
        config: EncoderConfig,
        tokens: int,
        row_length: float,
        pairs: int,
        texts: int,
        lora: LoRA,
    ) -> float:
        return count_language_model_flops(config, tokens, row_length)

    def make_scorer(self, held_out: HeldOut, params: LanguageParams) -> Scorer:
        tokenizer = held_out.tokenizer
        assert isinstance(tokenizer, Tokenizer)  # from_config refuses templates
        texts = [pair.x for pair in held_out.pairs]
        tokens = tokenizer.encode_language(texts, held_out.data.row_length)
        heldout_text = HeldoutText(tokens, tokenizer, held_out.layout, held_out.mesh)

        def score(params: LanguageParams, on_batch: Callable[[], None]) -> dict[str, float]:
            scores = heldout_text.compute_scores(params.encoder, on_batch)
            return scores | {'unigram_bits_per_byte': self.unigram_bits_per_byte}

        return score

    def describe_batch(self, pairs: int, data: Data) -> str:
        return f'{pairs:,} texts of up to {data.row_length:,} tokens'

    def describe_heldout(self, pairs: int) -> str:
        return f'{pairs:,} texts; unigram baseline: {self.unigram_bits_per_byte:.3f} bits per byte'

    def format_progress(self, row: Mapping[str, float]) -> str:
        return f'loss {row["loss"]:.3f} nats per token, accuracy {row["accuracy"]:.1%}'

    def format_heldout(self, scores: Mapping[str, float]) -> str:
        return (
            f'held-out loss {scores["heldout_loss"]:.3f}, '
            f'{scores["heldout_bits_per_byte"]:.3f} bits per byte (unigram baseline: '
            f'{self.unigram_bits_per_byte:.3f}), accuracy {scores["heldout_accuracy"]:.1%}'
        )

    def format_scores(self, row: Mapping[str, float]) -> str:
        return f'loss {row["loss"]:.3f} nats per token, {self.format_heldout(row)}'


def compute_token_sums(
    encoder: Encoder,
    tokens_RxS: jax.Array,
    segments_RxS: jax.Array,
    positions_RxS: jax.Array,
    keys_RxS: jax.Array | None = None,
) -> jax.Array:
    """Returns float32[3]: the summed loss in nats, the number of correctly predicted tokens and the
    number of predicted tokens, over all rows.
    """
    # The delimiters are the last ids of the vocabulary.
    ids = encoder.config.vocab_size - len(DELIMITERS)
    losses_RxS, right_RxS = predict_tokens(
        encoder, tokens_RxS, segments_RxS, positions_RxS, keys_RxS, ids
    )
    predicted_RxS = make_prediction_mask(segments_RxS, positions_RxS)
    return jnp.stack(
        [jnp.sum(x_RxS.astype(jnp.float32)) for x_RxS in (losses_RxS, right_RxS, predicted_RxS)]
    )


class HeldoutText:
    """Held-out texts, packed into rows, on which a language model is evaluated.

    Bits per byte are comparable between tokenizers: bytes are counted in the UTF-8 text that the
    ids decode to. Truncated text is not counted, nor are spaces and capitals that a lossy tokenizer
    drops.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        layout: Layout,
        mesh: jax.sharding.Mesh,
    ):
        """Packs the texts.

        Args:
          tokens: ids of each text.
          tokenizer: the tokenizer that made the ids.
          layout: layout of a training step. Each call of the model gets as many rows as one chunk
            of such a step.
          mesh: device mesh.
        """
        lengths = np.array([len(text) for text in tokens])
        rows_per_call = layout.parts * layout.rows
        rows = -(-count_rows_needed(lengths, layout.row_length) // rows_per_call) * rows_per_call
        all_texts = Layout(1, 1, len(tokens), 1, rows, layout.row_length)
        ids_bxTxZ = np.ones((len(tokens), 1, 1), np.int32)
        group = pack_group([[text] for text in tokens], ids_bxTxZ, all_texts)
        self._row_batches = [
            [array[start : start + rows_per_call] for array in group[:3]]
            for start in range(0, rows, rows_per_call)
        ]
        self._bytes = sum(len(text) for text in decode_to_bytes(tokens, tokenizer))
        self._mesh = mesh
        self._sums = jax.jit(
            compute_token_sums, out_shardings=jax.sharding.NamedSharding(mesh, P())
        )

    def compute_scores(self, encoder: Encoder, on_batch: Callable[[], None]) -> dict[str, float]:
        """Returns loss (nats per token), bits per byte, accuracy, and token and byte counts.

        Args:
          encoder: the encoder.
          on_batch: called after each batch of rows; may raise an exception to stop the evaluation.
        """
        totals = np.zeros(3)
        for row_batch in self._row_batches:
            rows = place_on_mesh(self._mesh, *row_batch)
            with jax.set_mesh(self._mesh):
                totals += np.asarray(self._sums(encoder, *rows), np.float64)
            on_batch()
        nats, right, tokens = totals
        return {
            'heldout_loss': nats / tokens,
            'heldout_bits_per_byte': nats / np.log(2) / self._bytes,
            'heldout_accuracy': right / tokens,
            'heldout_tokens': tokens,
            'heldout_bytes': self._bytes,
        }


def decode_to_bytes(tokens: Iterable[np.ndarray], tokenizer: Tokenizer) -> Iterator[bytes]:
    """Yields the UTF-8 bytes that the ids of each text decode to.

    Bytes of a final character that was cut in two are left out, so the count may be a few bytes too
    low per text.
    """
    bos_and_eos = tokenizer.bos_and_eos
    for ids in tokens:
        text = tokenizer.decode(i for i in ids.tolist() if i not in bos_and_eos)
        yield text.rstrip('\ufffd').encode()


def compute_unigram_bits(training: Iterable[bytes], heldout: Iterable[bytes]) -> float:
    """Returns the bits per byte of held-out texts under the byte frequencies of training texts,
    with add-one smoothing.
    """
    training_256, heldout_256 = (
        np.bincount(np.frombuffer(b''.join(texts), np.uint8), minlength=256)
        for texts in (training, heldout)
    )
    log_probabilities_256 = np.log2((training_256 + 1) / (training_256.sum() + 256))
    return float(-heldout_256 @ log_probabilities_256 / max(heldout_256.sum(), 1))


def compute_heldout_unigram_bits(
    reader: TokenReader, heldout: Sequence[Pair], sample: int = 4096
) -> float:
    """Returns the held-out bits per byte of a unigram byte model, estimated from up to `sample`
    training texts of each source.
    """
    tokenizer = reader.tokenizer
    assert isinstance(tokenizer, Tokenizer)  # from_config refuses templates
    training_tokens = [
        text
        for source in range(len(reader.sources))
        for (text,) in reader(source, spread_indices(len(reader.sources[source]), sample))[0]
    ]
    heldout_tokens = [text for (text,), _ in reader.encode(heldout)]
    return compute_unigram_bits(
        decode_to_bytes(training_tokens, tokenizer), decode_to_bytes(heldout_tokens, tokenizer)
    )
