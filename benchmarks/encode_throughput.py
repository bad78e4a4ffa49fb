r"""Measures texts encoded per second, compared with SentenceTransformer.encode.

Both sides use the same weights in float32 on this machine's CPU.

Example:
  python benchmarks/encode_throughput.py --corpus scifact/corpus.jsonl --texts 1000 \
      --rounds 3 --json encode_throughput.json

The corpus is in BEIR's format; by default, functions of the installed packages are encoded. Our
side is the embedder of launch/embed.py. sentence-transformers is measured with its default of 32
texts a batch, and with the batch size of --batches that is fastest on a sample. `ratio` in the JSON
is our median rate over the faster of the two.
"""

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from beside import ModelSettings, define_flags, run_and_report
from cpt_jax.cli.program import run_program
from turns import Moment, call_in_process, compute_spread, count_cores, take_turns

OURS, PEER, TUNED = 'ours', 'sentence-transformers', 'sentence-transformers, tuned'
DEFAULT_BATCH = 32  # default batch_size of SentenceTransformer.encode


@dataclasses.dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of the model and the texts; the fields are documented by the flags of their name."""

    corpus: str
    texts: int
    batches: tuple[str, ...]


def main() -> None:
    run_and_report(Settings, measure, print_table)


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """Returns the results of all sides; `print_table` prints them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = call_in_process(prepare, settings, folder)
        ours = {OURS: functools.partial(run_our_turn, settings, folder)}
        theirs = {
            PEER: functools.partial(run_their_turn, folder, None),
            TUNED: functools.partial(run_their_turn, folder, tuple(map(int, settings.batches))),
        }
        turns = take_turns({'ours': ours, 'theirs': theirs}, rounds)
        ours_NxD = np.load(folder / 'ours.npy')
        theirs_NxD = np.load(folder / 'theirs.npy')
    sides = {name: summarize(side, counts['texts']) for name, side in turns.items()}
    rates = {name: side['texts_per_second']['median'] for name, side in sides.items()}
    ratios = {name: rates[OURS] / rates[name] for name in sides if name != OURS}
    return {
        'ratio': min(ratios.values()),
        'ratio_to_default': ratios[PEER],
        'vectors_differ_by': float(np.abs(ours_NxD - theirs_NxD).max()),
        'settings': dataclasses.asdict(settings)
        | counts
        | {'rounds': rounds, 'cores': count_cores()},
        'sides': sides,
    }


def summarize(turns: Sequence[dict[str, float]], texts: int) -> dict[str, Any]:
    """Returns the results of one side from its turns."""
    return {
        'batch': turns[0]['batch'],
        'texts_per_second': compute_spread([texts / turn['seconds'] for turn in turns]),
        'texts_per_cpu_second': len(turns) * texts / sum(turn['cpu_seconds'] for turn in turns),
        'turns': list(turns),
    }


def print_table(result: dict[str, Any]) -> None:
    """Prints a row per side, and the difference of the vectors."""
    tokens = result['settings']['tokens_per_text']
    ours = result['sides'][OURS]['texts_per_second']['median']
    print(
        f'{"":<30}{"batch":>6}{"texts/s":>10}{"min..max":>18}{"tokens/s":>11}{"texts/CPU s":>13}'
        f'{"ours / this":>14}'
    )
    for name, side in result['sides'].items():
        rate = side['texts_per_second']
        times = (
            f'{rate["median"]:>10.2f}{rate["min"]:>9.2f}..{rate["max"]:<7.2f}'
            f'{rate["median"] * tokens:>11,.0f}'
        )
        cpu = f'{side["texts_per_cpu_second"]:>13.2f}'
        print(f'{name:<30}{side["batch"] or "":>6}{times}{cpu}{ours / rate["median"]:>12.2f} x')
    print(
        f'{tokens:.0f} tokens a text; maximum difference of the vectors of both sides '
        f'{result["vectors_differ_by"]:.1e}'
    )


def prepare(settings: Settings, folder: Path) -> dict[str, float]:
    """Writes the inputs of both sides to a folder: texts.json, tokenizer.json and twin/.

    Returns:
      `texts`, the number of texts, and `tokens_per_text`, their mean length after truncation.
    """
    from cpt_jax.text.tokenizer import load_tokenizer
    from gpt2_twin import save_twin, train_bpe

    corpus = read_corpus(settings.corpus)
    chosen = np.sort(np.random.default_rng(0).permutation(len(corpus))[: settings.texts])
    texts = [corpus[index] for index in chosen]
    train_bpe(corpus, settings.vocab_size, folder / 'tokenizer.json')
    (folder / 'texts.json').write_text(json.dumps(texts))
    tokenizer = load_tokenizer(folder / 'tokenizer.json')
    encoder, _ = make_encoder(settings, tokenizer)
    save_twin(encoder, tokenizer, settings.max_tokens, folder / 'twin')
    tokens = [len(ids) for ids in tokenizer.encode(texts, 'y', settings.max_tokens)]
    return {'texts': len(texts), 'tokens_per_text': float(np.mean(tokens))}


def read_corpus(path: str) -> list[str]:
    """Returns all texts of a corpus in BEIR's format, or the functions of installed packages if
    `path` is empty.
    """
    from etils import epath

    from cpt_jax.benchmark_data.beir import read_texts
    from cpt_jax.data.sources.python_source import PythonSource

    if path:
        return list(read_texts(epath.Path(path), titles=True).values())
    source = PythonSource('train')
    return [source[i].y for i in range(len(source))]


def make_encoder(settings: Settings, tokenizer):
    """Returns the encoder, with the same random parameters at each call, and its mesh."""
    import jax
    from flax import nnx

    from cpt_jax.model.config import EncoderConfig
    from cpt_jax.model.encoder import Encoder
    from cpt_jax.runtime.mesh import make_mesh

    sizes = {
        'width': settings.width,
        'layers': settings.layers,
        'heads': settings.heads,
        'max_length': settings.max_tokens,
    }
    # With 'passthrough', vectors of an untrained encoder depend on their text.
    config = EncoderConfig(
        tokenizer.vocab_size, **sizes, init='passthrough', dtype='float32'
    ).resolve_auto(jax.default_backend())
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        return jax.jit(lambda: Encoder(config, nnx.Rngs(0)))(), mesh


@functools.cache
def load_our_model(settings: Settings, folder: Path):
    """Returns our embedder, and the texts."""
    from cpt_jax.cli.program import use_compilation_cache
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.runtime.allocator import keep_freed_memory
    from cpt_jax.text.tokenizer import load_tokenizer

    use_compilation_cache()
    keep_freed_memory()  # as in all programs
    tokenizer = load_tokenizer(folder / 'tokenizer.json')
    encoder, mesh = make_encoder(settings, tokenizer)
    embed = Embedder(encoder, tokenizer, mesh, {'x': settings.max_tokens, 'y': settings.max_tokens})
    return embed, json.loads((folder / 'texts.json').read_text())


def run_our_turn(settings: Settings, folder: Path, number: int) -> dict[str, float]:
    """Returns the times of encoding all texts, and batch size 0: the embedder chooses its own."""
    embed, texts = load_our_model(settings, folder)
    start = Moment.now()
    vectors_NxD = embed(texts, 'y')
    passed = start.until(Moment.now())
    if number == 0:
        np.save(folder / 'ours.npy', vectors_NxD)
    return passed | {'batch': 0}


@functools.cache
def load_their_model(folder: Path) -> tuple[Callable[..., np.ndarray], list[str]]:
    """Returns the encode method of sentence-transformers, and the texts."""
    from gpt2_twin import load_twin

    model = load_twin(folder / 'twin', count_cores())
    encode = functools.partial(model.encode, show_progress_bar=False)
    return encode, json.loads((folder / 'texts.json').read_text())


def run_their_turn(folder: Path, batches: tuple[int, ...] | None, number: int) -> dict[str, float]:
    """Returns the times of encoding all texts, and the batch size.

    Args:
      folder: folder written by `prepare`.
      batches: batch sizes of which the fastest is used; None: the default.
      number: index of the round.
    """
    encode, texts = load_their_model(folder)
    size = find_fastest_batch(folder, batches) if batches else DEFAULT_BATCH
    start = Moment.now()
    vectors_NxD = encode(texts, batch_size=size)
    passed = start.until(Moment.now())
    if number == 0:
        np.save(folder / 'theirs.npy', vectors_NxD)
    return passed | {'batch': size}


@functools.cache
def find_fastest_batch(folder: Path, batches: tuple[int, ...]) -> int:
    """Returns the batch size that encodes a sample fastest, by the better of two calls."""
    encode, texts = load_their_model(folder)
    sample = texts[: max(batches)]
    seconds = {size: [] for size in batches}
    for size in batches * 2:
        start = time.perf_counter()
        encode(sample, batch_size=size)
        seconds[size].append(time.perf_counter() - start)
    return min(seconds, key=lambda size: min(seconds[size]))


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    flags.DEFINE_string(
        'corpus',
        '',
        'A corpus.jsonl in BEIR format. Default: the functions of installed packages.',
    )
    flags.DEFINE_integer('texts', 1000, 'Maximum number of texts, chosen at random.')
    flags.DEFINE_list(
        'batches',
        ['4', '8', '16', '32', '64'],
        'Batch sizes to try for SentenceTransformer.encode.',
    )
    define_flags()
    run_program(main)
