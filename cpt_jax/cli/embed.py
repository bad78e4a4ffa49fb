r"""Embeds the texts of a file on all devices.

Writes float32 vectors in shards, in the order of the file (vectors-00000-of-00004.npy), the ids of
their texts (ids-00000-of-00004.txt) and the settings that produced them (meta.json). If the program
is killed, run the same command again: existing shards are not computed again. To use several hosts,
start the same command on each, as for launch/train.py; every process reads the file, and process 0
writes.

The file is .jsonl or .txt, optionally compressed (.gz). In .jsonl, a row's text is
title + ' ' + text, as in BEIR's corpus.jsonl, or the value of --field; its id is `_id`, `id` or the
line number. In .txt, every line is one text.

Example:
  python launch/embed.py --model runs/quickstart --input ~/data/retrieval/scifact/corpus.jsonl \
      --output vectors/scifact
"""

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.cli.model_flags import define_model_flags
from cpt_jax.cli.program import define_process_flags, run_program, use_compilation_cache
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_on_bucket, make_path
from cpt_jax.storage.remote import fetch
from cpt_jax.storage.vector_shards import VectorsMeta, VectorWriter
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
    "Field of a .jsonl row that contains the text, such as code. Default: title + ' ' + text.",
)
_SHARD_SIZE = flags.DEFINE_integer(
    'shard_size',
    20_000,
    'Vectors per file; a killed program loses at most one file of work.',
    lower_bound=1,
)
_join_processes = define_process_flags()


def main() -> None:
    use_compilation_cache()
    with _join_processes():
        _embed_file()


def _embed_file() -> None:
    import jax
    from jax.experimental import multihost_utils

    from cpt_jax.embed.load import load_embedder
    from cpt_jax.runtime.multihost import check_processes_agree

    output = make_path(_OUTPUT.value, '--output')
    if jax.process_index() == 0 and not is_on_bucket(output):  # only process 0 writes
        check_writable(output, '--output')
    embedder = load_embedder(_MODEL.value, **_read_model_options())
    corpus = Corpus(epath.Path(fetch(_INPUT.value, '--input')), _FIELD.value)
    meta = VectorsMeta(
        model=embedder.model_name,
        settings=embedder.settings,
        side=_SIDE.value,
        input=_INPUT.value,
        fingerprint=corpus.fingerprint,
        texts=len(corpus),
        width=embedder.width,
        shard_size=_SHARD_SIZE.value,
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
    # Only process 0 has access to the output directory, so it broadcasts the missing shards.
    wanted = multihost_utils.broadcast_one_to_all(
        np.isin(np.arange(meta.shards), writer.missing if writer else [])
    )
    start = time.perf_counter()
    texts = _embed_missing_shards(embedder, corpus, meta, wanted, writer)
    if writer:
        print(_format_summary(embedder, meta, texts, time.perf_counter() - start))


def _embed_missing_shards(
    embedder: 'Embedder',
    corpus: Corpus,
    meta: VectorsMeta,
    wanted: np.ndarray,
    writer: VectorWriter | None,
) -> int:
    """Embeds the texts of the wanted shards and writes their vectors.

    Args:
      embedder: the model.
      corpus: texts of all shards.
      meta: description of the vectors.
      wanted: bool[shards], whether a shard is to be computed.
      writer: writer of the shards; None on all processes but the first.

    Returns:
      The number of texts that were embedded.
    """
    # Ids of texts that the embedder has read and not returned vectors for yet.
    ids: deque[str] = deque()

    def iterate_texts() -> Iterator[str]:
        for index, (name, text) in enumerate(islice(corpus, meta.texts)):
            if wanted[index // meta.shard_size]:
                ids.append(name)
                yield text

    total = sum(meta.get_shard_size(shard) for shard in wanted.nonzero()[0].tolist())
    for vectors_NxD in embedder.stream(
        iterate_texts(), cast('Side', meta.side), 'texts' if writer else '', total
    ):
        names = [ids.popleft() for _ in vectors_NxD]
        if writer:
            writer.add(names, vectors_NxD)
    if writer and writer.missing:
        raise UserError(f'--input {meta.input}: became shorter while it was read: start again')
    return total


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
    return '\n'.join(lines)


def run() -> None:
    """Runs the console script cpt-embed."""
    run_program(main)
