r"""What demonstrations cost: the sentences of STS-B dev without one, behind one that is computed
once, and behind one in every row.

Example:
  python benchmarks/demonstrations.py --model ~/opt-125m --candidates icl_examples.txt \
      --data_dir ~/data --json demonstrations.json

The three take turns in one process, candidate after candidate; the first turn of each, which
compiles, does not count. In the JSON `ratio` is the processor seconds behind a shared demonstration
over those without one, `ratio_of_whole` over those with one in every row; medians.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.evals.demonstrations.candidates import read_candidates
from cpt_jax.evals.demonstrations.selection import NONE, prompt_of
from cpt_jax.evals.tasks.sts import read_benchmark
from cpt_jax.text.prompt_template import Prompt, Representation
from turns import Moment

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder

SIDES = {'none': 'no demonstration', 'shared': 'computed once', 'whole': 'in every row'}


def main() -> None:
    from cpt_jax.embed.load import load_embedder

    use_compilation_cache()
    embedder = load_embedder(_MODEL.value, representation=Representation('prompteol', clean=True))
    candidates = read_candidates([Path(_CANDIDATES.value)], embedder.prompt.template)
    chosen = np.random.default_rng(0).permutation(len(candidates))[: _COUNT.value]
    pairs = read_benchmark(
        epath.Path(_DATA_DIR.value).expanduser() / 'senteval/STS/STSBenchmark/sts-dev.csv', 'dev'
    ).texts
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))[: _TEXTS.value or None]
    found = measure(
        embedder,
        texts,
        [prompt_of(candidates[place], embedder.prompt) for place in chosen],
        _ROUNDS.value,
    )
    print(
        f'{len(texts):,} texts, {len(chosen)} demonstrations; vectors differ by '
        f'{found["difference"]:.1e} at most'
    )
    print(f'{"":<18}{"processor s":>12}{"seconds":>9}{"tokens a text":>15}')
    for name, row in found['sides'].items():
        print(
            f'{SIDES[name]:<18}{row["cpu_seconds"]:>12.2f}{row["seconds"]:>9.2f}'
            f'{row["tokens"]:>15.1f}'
        )
    print(
        f'a shared demonstration takes {found["ratio"]:.2f} x the time of none, and '
        f'{found["ratio_of_whole"]:.2f} x of one in every row'
    )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def measure(
    embedder: 'Embedder', texts: Sequence[str], prompts: Sequence[Prompt], rounds: int
) -> dict:
    """Medians over demonstrations and rounds."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    difference = 0.0
    for prompt in prompts:
        readers = {
            'none': embedder.reading(prompt_of(NONE, embedder.prompt)),
            'shared': embedder.reading(prompt),
            'whole': embedder.reading(prompt, share=False),
        }
        for turn in range(rounds + 1):
            vectors = {}
            for name, read in readers.items():
                start, before = Moment.now(), read.tokens - read.shared
                vectors[name] = read(texts, 'x')
                if turn:
                    times[name].append(
                        start.until(Moment.now())
                        | {'tokens': (read.tokens - read.shared - before) / len(texts)}
                    )
        difference = max(difference, float(np.abs(vectors['shared'] - vectors['whole']).max()))
    sides = {
        name: {kind: statistics.median(row[kind] for row in rows) for kind in rows[0]}
        for name, rows in times.items()
    }
    shared, none, whole = (sides[name]['cpu_seconds'] for name in ('shared', 'none', 'whole'))
    return {
        'ratio': shared / none,
        'ratio_of_whole': shared / whole,
        'difference': difference,
        'sides': sides,
    }


if __name__ == '__main__':
    # Here, as the tests import this program.
    _MODEL = flags.DEFINE_string('model', None, 'A causal language model.', required=True)
    _CANDIDATES = flags.DEFINE_string(
        'candidates', None, 'A file of candidates, as for launch/demonstrations.py.', required=True
    )
    _DATA_DIR = flags.DEFINE_string(
        'data_dir', None, 'Holds senteval/STS/STSBenchmark/sts-dev.csv.', required=True
    )
    _COUNT = flags.DEFINE_integer('count', 5, 'Demonstrations, drawn at random.')
    _TEXTS = flags.DEFINE_integer('texts', 0, 'Only so many sentences; 0: all.')
    _ROUNDS = flags.DEFINE_integer(
        'rounds', 1, 'Turns of each side for each demonstration that count.'
    )
    _JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
    run_program(main)
