r"""Turns the texts of a file into vectors, on every device.

Writes shards of float32 vectors in the order of the file (vectors-00000-of-00004.npy), the ids of
their texts (ids-00000-of-00004.txt) and what they were made of (meta.json). A program that was
killed goes on when the same command is given again: shards that are there are not computed again.
On several hosts, start the same command on each, as for launch/train.py; each reads the file, and
process 0 writes.

The file is .jsonl (a row's text is title + ' ' + text, as in BEIR's corpus.jsonl, or what stands in
--field; its id is `_id`, `id` or the number of the line), or .txt with one text a line; .gz is
unpacked.

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

from cpt_jax.cli.model_flags import define_model
from cpt_jax.cli.program import define_processes, run_program, use_compilation_cache
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.local_path import local_path
from cpt_jax.storage.vector_shards import Meta, VectorWriter
from cpt_jax.text.corpus import Corpus

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder  # imports JAX, which waits until the flags are read
    from cpt_jax.text.tokenizer import Side

_MODEL, _OPTIONS = define_model()
_INPUT = flags.DEFINE_string(
    'input',
    None,
    'The file of texts: .jsonl or .txt, or packed (.jsonl.gz, .txt.gz).',
    required=True,
)
_OUTPUT = flags.DEFINE_string('output', None, 'The directory to fill.', required=True)
_SIDE = flags.DEFINE_enum(
    'side', 'y', ['x', 'y'], 'x: the texts are queries. y: they are what queries look for.'
)
_FIELD = flags.DEFINE_string(
    'field',
    '',
    "The field of a row that holds the text, such as code; by default title + ' ' + text.",
)
_SHARD_SIZE = flags.DEFINE_integer(
    'shard_size', 20_000, 'Vectors of a file; a program that is killed loses one.', lower_bound=1
)
_JOINED = define_processes()


def main() -> None:
    use_compilation_cache()
    with _JOINED():
        _embed()


def _embed() -> None:
    import jax
    from jax.experimental import multihost_utils

    from cpt_jax.embed.load import load_embedder
    from cpt_jax.runtime.multihost import check_alike

    output = local_path(_OUTPUT.value, '--output')
    embedder = load_embedder(_MODEL.value, **_OPTIONS())
    corpus = Corpus(epath.Path(_INPUT.value).expanduser(), _FIELD.value)
    meta = Meta(
        model=embedder.model_name,
        settings=embedder.settings,
        side=_SIDE.value,
        input=str(corpus.path),
        fingerprint=corpus.fingerprint,
        texts=len(corpus),
        width=embedder.width,
        shard_size=_SHARD_SIZE.value,
    )
    line = (
        f'--model {_MODEL.value} (here {embedder.model_name}): the processes opened different '
        f'models: give RUN@STEP, and the same flags'
    )
    check_alike([embedder.model_name, embedder.settings], line)
    check_alike(
        corpus.fingerprint,
        f'--input {corpus.path}: the processes read different texts; give each of them the same '
        f'file',
    )

    writer = VectorWriter(output, meta) if jax.process_index() == 0 else None
    # Only process 0 need see the directory.
    wanted = multihost_utils.broadcast_one_to_all(
        np.isin(np.arange(meta.shards), writer.missing if writer else [])
    )
    start = time.perf_counter()
    texts = _fill(embedder, corpus, meta, wanted, writer)
    if writer:
        print(_summary(embedder, meta, texts, time.perf_counter() - start))


def _fill(
    embedder: 'Embedder',
    corpus: Corpus,
    meta: Meta,
    wanted: np.ndarray,
    writer: VectorWriter | None,
) -> int:
    """Embeds the texts of the wanted shards; returns their number."""
    # Of the texts that the embedder has read, and not given vectors for yet.
    ids: deque[str] = deque()

    def texts() -> Iterator[str]:
        for place, (name, text) in enumerate(islice(corpus, meta.texts)):
            if wanted[place // meta.shard_size]:
                ids.append(name)
                yield text

    total = sum(meta.size(shard) for shard in wanted.nonzero()[0].tolist())
    for vectors_NxD in embedder.stream(
        texts(), cast('Side', meta.side), 'texts' if writer else '', total
    ):
        names = [ids.popleft() for _ in vectors_NxD]
        if writer:
            writer.add(names, vectors_NxD)
    if writer and writer.missing:
        raise UserError(f'--input {meta.input} has become shorter while it was read: start again')
    return total


def _summary(embedder: 'Embedder', meta: Meta, texts: int, seconds: float) -> str:
    """What was done, how fast, and where it is."""
    lines = [
        f'{meta.texts:,} vectors of {meta.width} units in {meta.shards:,} files; written to '
        f'{_OUTPUT.value}'
    ]
    if texts < meta.texts:
        lines.insert(
            0,
            f'{meta.texts - texts:,} of {meta.texts:,} texts had their vectors from an earlier '
            f'start',
        )
    if texts:
        padding = 1 - (embedder.tokens - embedder.shared) / embedder.columns
        rates = (
            f'{texts / seconds:,.0f} texts/s, {embedder.tokens / seconds:,.0f} tokens/s; '
            f'{padding:.1%} of what was computed is padding'
        )
        lines.insert(0, f'{texts:,} texts in {seconds:,.1f} s, compiling included: {rates}')
    return '\n'.join(lines)


def run() -> None:
    """The console script cpt-embed."""
    run_program(main)
