r"""Texts a second in encoding: ours beside SentenceTransformer.encode, the same weights on this
machine's CPU in float32.

Example:
  python benchmarks/encode_throughput.py --corpus scifact/corpus.jsonl --texts 1000 \
      --rounds 3 --json encode_throughput.json

The corpus is in BEIR's format; without one, functions of the installed packages are encoded. Ours
is what launch/embed.py calls. Theirs is measured with its default of 32 texts a batch, and with
that of --batches which is fastest on a sample. `ratio` in the JSON is ours over the faster of the
two, of the medians.
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

from beside import Model, define_flags, report
from cpt_jax.cli.program import run_program
from turns import Moment, alone, cores, spread, take_turns

OURS, PEER, TUNED = 'ours', 'sentence-transformers', 'sentence-transformers, tuned'
DEFAULT_BATCH = 32  # of SentenceTransformer.encode


@dataclasses.dataclass(frozen=True)
class Settings(Model):
    """With what is encoded, and in which batches by the other side."""

    corpus: str
    texts: int
    batches: tuple[str, ...]


def main() -> None:
    report(Settings, measure, print_table)


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """The figures of all sides; see `print_table` for what they are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counted = alone(prepare, settings, folder)
        theirs = {
            PEER: functools.partial(their_turn, folder, None),
            TUNED: functools.partial(their_turn, folder, tuple(map(int, settings.batches))),
        }
        turns = take_turns(
            {'ours': {OURS: functools.partial(our_turn, settings, folder)}, 'theirs': theirs},
            rounds,
        )
        ours_NxD, theirs_NxD = (np.load(folder / f'{side}.npy') for side in ('ours', 'theirs'))
    sides = {name: summary(side, counted['texts']) for name, side in turns.items()}
    rate = {name: side['texts_per_second']['median'] for name, side in sides.items()}
    ratios = {name: rate[OURS] / rate[name] for name in sides if name != OURS}
    return {
        'ratio': min(ratios.values()),
        'ratio_to_default': ratios[PEER],
        'vectors_differ_by': float(np.abs(ours_NxD - theirs_NxD).max()),
        'settings': dataclasses.asdict(settings) | counted | {'rounds': rounds, 'cores': cores()},
        'sides': sides,
    }


def summary(turns: Sequence[dict[str, float]], texts: int) -> dict[str, Any]:
    """Of one side's turns."""
    return {
        'batch': turns[0]['batch'],
        'texts_per_second': spread([texts / turn['seconds'] for turn in turns]),
        'texts_per_cpu_second': len(turns) * texts / sum(turn['cpu_seconds'] for turn in turns),
        'turns': list(turns),
    }


def print_table(result: dict[str, Any]) -> None:
    tokens = result['settings']['tokens_per_text']
    ours = result['sides'][OURS]['texts_per_second']['median']
    print(
        f'{"":<30}{"batch":>6}{"texts/s":>10}{"min..max":>18}{"tokens/s":>11}{"texts/CPU s":>13}'
        f'{"ours over it":>14}'
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
        f'{tokens:.0f} tokens a text; the vectors of both sides differ by '
        f'{result["vectors_differ_by"]:.1e} at most'
    )


def prepare(settings: Settings, folder: Path) -> dict[str, float]:
    """Writes what both sides read: texts.json, tokenizer.json and twin/. Returns how many texts
    there are and tokens of one, cut.
    """
    from cpt_jax.text.tokenizer import load_tokenizer
    from gpt2_twin import save_twin, train_bpe

    corpus = read_corpus(settings.corpus)
    chosen = np.sort(np.random.default_rng(0).permutation(len(corpus))[: settings.texts])
    texts = [corpus[place] for place in chosen]
    train_bpe(corpus, settings.vocab_size, folder / 'tokenizer.json')
    (folder / 'texts.json').write_text(json.dumps(texts))
    tokenizer = load_tokenizer(folder / 'tokenizer.json')
    encoder, _ = fresh_encoder(settings, tokenizer)
    save_twin(encoder, tokenizer, settings.max_tokens, folder / 'twin')
    tokens = [len(ids) for ids in tokenizer.encode(texts, 'y', settings.max_tokens)]
    return {'texts': len(texts), 'tokens_per_text': float(np.mean(tokens))}


def read_corpus(path: str) -> list[str]:
    """All texts of a corpus in BEIR's format; without one, the functions of the default source."""
    from etils import epath

    from cpt_jax.benchmark_data.beir import read_texts
    from cpt_jax.data.sources.python_source import PythonSource

    if path:
        return list(read_texts(epath.Path(path), titles=True).values())
    source = PythonSource('train')
    return [source[i].y for i in range(len(source))]


def fresh_encoder(settings: Settings, tokenizer):
    """The encoder, the same at each call, and its mesh. 'passthrough': fresh vectors that differ by
    their text.
    """
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
    config = EncoderConfig(tokenizer.vocab_size, **sizes, init='passthrough', dtype='float32').on(
        jax.default_backend()
    )
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        return jax.jit(lambda: Encoder(config, nnx.Rngs(0)))(), mesh


@functools.cache
def our_model(settings: Settings, folder: Path):
    """What embeds, and the texts."""
    from cpt_jax.cli.program import use_compilation_cache
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.runtime.allocator import keep_freed_memory
    from cpt_jax.text.tokenizer import load_tokenizer

    use_compilation_cache()
    keep_freed_memory()  # as every program does
    tokenizer = load_tokenizer(folder / 'tokenizer.json')
    encoder, mesh = fresh_encoder(settings, tokenizer)
    embed = Embedder(encoder, tokenizer, mesh, {'x': settings.max_tokens, 'y': settings.max_tokens})
    return embed, json.loads((folder / 'texts.json').read_text())


def our_turn(settings: Settings, folder: Path, number: int) -> dict[str, float]:
    """What all texts take; the texts a batch are not the caller's to choose: 0."""
    embed, texts = our_model(settings, folder)
    start = Moment.now()
    vectors_NxD = embed(texts, 'y')
    passed = start.until(Moment.now())
    if number == 0:
        np.save(folder / 'ours.npy', vectors_NxD)
    return passed | {'batch': 0}


@functools.cache
def their_model(folder: Path) -> tuple[Callable[..., np.ndarray], list[str]]:
    """What encodes, and the texts."""
    from gpt2_twin import load_twin

    model = load_twin(folder / 'twin', cores())
    return functools.partial(model.encode, show_progress_bar=False), json.loads(
        (folder / 'texts.json').read_text()
    )


def their_turn(folder: Path, batches: tuple[int, ...] | None, number: int) -> dict[str, float]:
    """What all texts take, so many in a batch: the fastest of `batches`; None: the default."""
    encode, texts = their_model(folder)
    size = fastest_batch(folder, batches) if batches else DEFAULT_BATCH
    start = Moment.now()
    vectors_NxD = encode(texts, batch_size=size)
    passed = start.until(Moment.now())
    if number == 0:
        np.save(folder / 'theirs.npy', vectors_NxD)
    return passed | {'batch': size}


@functools.cache
def fastest_batch(folder: Path, batches: tuple[int, ...]) -> int:
    """Texts a batch with which a sample takes the least time, at best of two."""
    encode, texts = their_model(folder)
    sample = texts[: max(batches)]
    seconds = {size: [] for size in batches}
    for size in batches * 2:
        start = time.perf_counter()
        encode(sample, batch_size=size)
        seconds[size].append(time.perf_counter() - start)
    return min(seconds, key=lambda size: min(seconds[size]))


if __name__ == '__main__':
    # Here, as the tests import several of these programs.
    flags.DEFINE_string(
        'corpus',
        '',
        'A corpus.jsonl in BEIR format; by default the functions of installed packages.',
    )
    flags.DEFINE_integer(
        'texts', 1000, 'That are encoded, chosen at random; all where there are fewer.'
    )
    flags.DEFINE_list(
        'batches',
        ['4', '8', '16', '32', '64'],
        'Texts a batch that are tried for SentenceTransformer.encode.',
    )
    define_flags()
    run_program(main)
