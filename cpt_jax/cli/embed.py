r"""Embeds the texts of a file on all devices.

Writes vectors in shards, in the order of the file (vectors-00000-of-00004.npy), the ids of their
texts (ids-00000-of-00004.txt), a hash of each text by which training finds its vector
(text_keys.npy) and the settings that produced them (meta.json). Vectors are float32, or int8 or
binary codes with --precision. If the program is killed, run the same command again: existing shards
are not computed again. To use several hosts, start the same command on each, as for
launch/train.py; every process reads the file, and process 0 writes.

The file is .jsonl or .txt, optionally compressed (.gz). In .jsonl, a row's text is
title + ' ' + text, as in BEIR's corpus.jsonl, or the value of --field; its id is `_id`, `id` or the
line number. In .txt, every line is one text.

Example:
  python launch/embed.py --model runs/quickstart --input ~/data/retrieval/scifact/corpus.jsonl \
      --output vectors/scifact
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.cli.model_flags import define_model_flags
from cpt_jax.cli.program import define_process_flags, run_program, use_compilation_cache
from cpt_jax.data.pairs import compute_text_key
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_on_bucket, make_path
from cpt_jax.storage.remote import fetch
from cpt_jax.storage.vector_codes import PRECISIONS, compute_ranges
from cpt_jax.storage.vector_shards import VectorWriter, read_vectors
from cpt_jax.storage.vectors_meta import VectorsMeta
from cpt_jax.storage.writable import check_writable
from cpt_jax.text.corpus import Corpus

if TYPE_CHECKING:
    # Imports JAX, whose platform is only chosen when the flags are parsed.
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.text.tokenizer import Side

_MODEL, _read_model_options = define_model_flags()
_INPUT = flags.DEFINE_string(
    'input',
    None,
    'File of texts, local or in a bucket (gs://...): .jsonl or .txt, optionally compressed '
    '(.jsonl.gz, .txt.gz).',
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Directory to write to, local or in a bucket (gs://...).', required=True
)
_SIDE = flags.DEFINE_enum(
    'side', 'y', ['x', 'y'], 'Side of the texts: x for queries, y for what queries search for.'
)
_FIELD = flags.DEFINE_string(
    'field',
    '',
    'Field of a .jsonl row that contains the text, such as code, or a list of texts, such as '
    "negatives. Default: title + ' ' + text.",
)
_SHARD_SIZE = flags.DEFINE_integer(
    'shard_size',
    20_000,
    'Vectors per file; a killed program loses at most one file of work.',
    lower_bound=1,
)
_PRECISION = flags.DEFINE_enum(
    'precision',
    'float32',
    [*PRECISIONS],
    'Precision of the written vectors: float32; int8, a quarter of the size; or binary, one bit '
    'per dimension. The codes are those of sentence-transformers (quantize_embeddings).',
)
_CALIBRATION_TEXTS = flags.DEFINE_integer(
    'calibration_texts',
    10_000,
    'With --precision=int8: number of texts, evenly spaced in the file, whose vectors give the '
    'range of each dimension.',
    lower_bound=2,
)
_RANGES_FROM = flags.DEFINE_string(
    'ranges_from',
    '',
    'With --precision=int8: directory of int8 vectors whose ranges are used, so that the codes of '
    'both directories can be compared.',
)
_join_processes = define_process_flags()


def main() -> None:
    use_compilation_cache()
    with _join_processes():
        _embed_file()


def _embed_file() -> None:
    import jax
    from jax.experimental import multihost_utils

    from cpt_jax.embed.load import add_weights_fingerprint, load_embedder
    from cpt_jax.runtime.multihost import check_processes_agree

    output = make_path(_OUTPUT.value, '--output')
    if jax.process_index() == 0 and not is_on_bucket(output):  # only process 0 writes
        check_writable(output, '--output')
    embedder = load_embedder(_MODEL.value, **_read_model_options())
    add_weights_fingerprint(embedder, _MODEL.value)
    corpus = Corpus(epath.Path(fetch(_INPUT.value, '--input')), _FIELD.value)
    ranges_2xD, calibration = _read_given_ranges(embedder.width, len(corpus))
    meta = VectorsMeta(
        model=embedder.model_name,
        settings=embedder.settings,
        side=_SIDE.value,
        input=_INPUT.value,
        fingerprint=corpus.fingerprint,
        texts=len(corpus),
        width=embedder.width,
        shard_size=_SHARD_SIZE.value,
        precision=_PRECISION.value,
        calibration=calibration,
    )
    check_processes_agree(
        [embedder.model_name, embedder.settings],
        f'--model {_MODEL.value} (this process loaded {embedder.model_name}): the processes loaded '
        f'different models: give RUN@STEP, and the same flags on every host',
    )
    check_processes_agree(
        corpus.fingerprint,
        f'--input {_INPUT.value}: the processes read different texts: give all of them the same '
        f'file',
    )

    if jax.process_index() == 0:
        print('\n'.join(embedder.summary), flush=True)
    writer = VectorWriter(output, meta) if jax.process_index() == 0 else None
    if writer and writer.needs_ranges and ranges_2xD is not None:
        writer.set_ranges(ranges_2xD)
    # Only process 0 has access to the output directory, so it broadcasts what is missing.
    wanted, needs_ranges = multihost_utils.broadcast_one_to_all(
        (
            np.isin(np.arange(meta.shards), writer.missing if writer else []),
            np.asarray(writer is not None and writer.needs_ranges),
        )
    )
    if writer:
        writer.write_text_keys(compute_text_key(text) for _, text in corpus)
    start = time.perf_counter()
    texts = _embed_missing_shards(embedder, corpus, meta, wanted, bool(needs_ranges), writer)
    if writer:
        print(_format_summary(embedder, meta, texts, time.perf_counter() - start))


def _read_given_ranges(width: int, texts: int) -> tuple[np.ndarray | None, str]:
    """Returns the ranges of --ranges_from, None without it, and the description of the calibration.

    Args:
      width: dimensions of the vectors.
      texts: number of texts.
    """
    if _PRECISION.value != 'int8':
        if _RANGES_FROM.value:
            raise UserError('--ranges_from: needs --precision=int8')
        return None, ''
    if not _RANGES_FROM.value:
        of = f'{texts:,} texts'
        if texts > _CALIBRATION_TEXTS.value:
            of = f'{_CALIBRATION_TEXTS.value:,} of {of}, evenly spaced'
        return None, f'minimum and maximum of each dimension over {of}'
    given = read_vectors(_RANGES_FROM.value, verify=False)
    if given.ranges_2xD is None or given.meta.width != width:
        raise UserError(
            f'--ranges_from {_RANGES_FROM.value}: holds {given.meta.precision} vectors of '
            f'{given.meta.width} dimensions, not int8 of {width}'
        )
    return given.ranges_2xD, f'ranges of {given.meta.input}: {given.meta.calibration}'


def _embed_missing_shards(
    embedder: 'Embedder',
    corpus: Corpus,
    meta: VectorsMeta,
    wanted: np.ndarray,
    needs_ranges: bool,
    writer: VectorWriter | None,
) -> int:
    """Embeds the texts of the wanted shards and writes their vectors.

    Args:
      embedder: the model.
      corpus: texts of all shards.
      meta: description of the vectors.
      wanted: bool[shards], whether a shard is to be computed.
      needs_ranges: whether ranges of int8 codes are to be computed first, for all shards.
      writer: writer of the shards; None on all processes but the first.

    Returns:
      The number of texts that were embedded.
    """
    wanted = wanted | needs_ranges
    total = sum(meta.get_shard_size(shard) for shard in wanted.nonzero()[0].tolist())
    label = 'texts' if writer else ''

    def is_wanted(index: int) -> bool:
        return wanted[index // meta.shard_size]

    blocks = _iterate_vectors(embedder, corpus, meta, is_wanted, label, total)
    if needs_ranges and meta.texts <= _CALIBRATION_TEXTS.value:
        held = [*blocks]  # the calibration has all texts, so none is embedded twice
        ranges_2xD = compute_ranges(np.concatenate([vectors_NxD for _, vectors_NxD in held]))
        blocks = iter(held)
    elif needs_ranges:
        ranges_2xD = _calibrate(embedder, corpus, meta, 'calibration' if writer else '')
    if needs_ranges and writer:
        writer.set_ranges(ranges_2xD)
    for names, vectors_NxD in blocks:
        if writer:
            writer.add(names, vectors_NxD)
    if writer and writer.missing:
        raise UserError(f'--input {meta.input}: became shorter while it was read: start again')
    return total


def _calibrate(embedder: 'Embedder', corpus: Corpus, meta: VectorsMeta, label: str) -> np.ndarray:
    """Returns the ranges over --calibration_texts texts that are evenly spaced in the file."""
    count = _CALIBRATION_TEXTS.value
    chosen = {*np.linspace(0, meta.texts - 1, count).astype(int).tolist()}
    blocks = _iterate_vectors(embedder, corpus, meta, chosen.__contains__, label, len(chosen))
    # The extremes of all texts are among the extremes of the blocks.
    return compute_ranges(np.concatenate([compute_ranges(vectors) for _, vectors in blocks]))


def _iterate_vectors(
    embedder: 'Embedder',
    corpus: Corpus,
    meta: VectorsMeta,
    is_wanted: Callable[[int], bool],
    label: str,
    total: int,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields (ids, vectors float32 [n, D]) of the wanted texts, in the order of the file.

    Args:
      embedder: the model.
      corpus: texts of all shards.
      meta: description of the vectors.
      is_wanted: whether the text with an index is embedded.
      label: label of the progress bar; '' shows none.
      total: number of wanted texts.
    """
    # Ids of texts that the embedder has read and not returned vectors for yet.
    ids: deque[str] = deque()

    def iterate_texts() -> Iterator[str]:
        for index, (name, text) in enumerate(islice(corpus, meta.texts)):
            if is_wanted(index):
                ids.append(name)
                yield text

    for vectors_NxD in embedder.stream(iterate_texts(), cast('Side', meta.side), label, total):
        yield [ids.popleft() for _ in vectors_NxD], vectors_NxD


def _format_summary(embedder: 'Embedder', meta: VectorsMeta, texts: int, seconds: float) -> str:
    """Returns the lines that report what was embedded, how fast, and where it was written."""
    lines = []
    if texts:
        padding = 1 - (embedder.tokens - embedder.shared) / embedder.columns
        lines.append(
            f'{texts:,} texts in {seconds:,.1f} s, compiling included: '
            f'{texts / seconds:,.0f} texts/s, {embedder.tokens / seconds:,.0f} tokens/s; '
            f'{padding:.1%} of what was computed is padding'
        )
    if texts < meta.texts:
        lines.append(
            f'{meta.texts - texts:,} of {meta.texts:,} texts had their vectors from an earlier '
            f'start'
        )
    lines.append(
        f'{meta.texts:,} vectors of {meta.width} dimensions in {meta.shards:,} files; written to '
        f'{_OUTPUT.value}'
    )
    if meta.precision != 'float32':
        lines.append(
            f'{meta.precision} codes, {meta.columns} bytes per text; calibration: '
            f'{meta.calibration or "none"}'
        )
    return '\n'.join(lines)


def run() -> None:
    """Runs the console script cpt-embed."""
    run_program(main)
