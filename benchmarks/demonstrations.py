r"""Measures the cost of a demonstration in the prompt, on the sentences of STS-B dev.

Three sides are compared: no demonstration, a demonstration that is computed once (a shared prefix),
and a demonstration that is computed in every row.

Example:
  python benchmarks/demonstrations.py --model ~/opt-125m --candidates icl_examples.txt \
      --data_dir ~/data --json demonstrations.json

The sides take turns in one process, for one candidate after the other. The first turn of each
compiles and is not counted. In the JSON, `ratio` is the CPU time with a shared demonstration over
that without one, and `ratio_of_whole` over that with one in every row; all are medians.
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
from cpt_jax.evals.demonstrations.selection import NO_DEMONSTRATION, make_candidate_prompt
from cpt_jax.evals.tasks.sts import read_benchmark
from cpt_jax.text.prompt_template import Prompt, Representation
from turns import Moment

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder

# Printed names of the sides.
SIDES = {'none': 'no demonstration', 'shared': 'computed once', 'whole': 'in every row'}


def main() -> None:
    from cpt_jax.embed.load import load_embedder

    use_compilation_cache()
    embedder = load_embedder(_MODEL.value, representation=Representation('prompteol', clean=True))
    candidates = read_candidates([Path(_CANDIDATES.value)], embedder.prompt.template)
    chosen = np.random.default_rng(0).permutation(len(candidates))[: _COUNT.value]
    prompts = [make_candidate_prompt(candidates[index], embedder.prompt) for index in chosen]
    path = epath.Path(_DATA_DIR.value).expanduser() / 'senteval/STS/STSBenchmark/sts-dev.csv'
    pairs = read_benchmark(path, 'dev').texts
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))[: _TEXTS.value or None]
    results = measure(embedder, texts, prompts, _ROUNDS.value)
    print(
        f'{len(texts):,} texts, {len(chosen)} demonstrations; maximum difference of vectors '
        f'{results["difference"]:.1e}'
    )
    print(f'{"":<18}{"CPU seconds":>12}{"seconds":>9}{"tokens a text":>15}')
    for name, row in results['sides'].items():
        print(
            f'{SIDES[name]:<18}{row["cpu_seconds"]:>12.2f}{row["seconds"]:>9.2f}'
            f'{row["tokens"]:>15.1f}'
        )
    print(
        f'a shared demonstration takes {results["ratio"]:.2f} x the CPU time of none, and '
        f'{results["ratio_of_whole"]:.2f} x that of one in every row'
    )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def measure(
    embedder: 'Embedder', texts: Sequence[str], prompts: Sequence[Prompt], rounds: int
) -> dict:
    """Returns median times over demonstrations and rounds, as in the JSON.

    Args:
      embedder: embedder whose prompt the demonstrations are added to.
      texts: texts to embed.
      prompts: prompts with a demonstration.
      rounds: timed turns of each side for each prompt.
    """
    times: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    difference = 0.0
    for prompt in prompts:
        embedders = {
            'none': embedder.with_prompt(make_candidate_prompt(NO_DEMONSTRATION, embedder.prompt)),
            'shared': embedder.with_prompt(prompt),
            'whole': embedder.with_prompt(prompt, share=False),
        }
        for turn in range(rounds + 1):
            vectors = {}
            for name, embed in embedders.items():
                tokens_before = embed.tokens - embed.shared
                start = Moment.now()
                vectors[name] = embed(texts, 'x')
                passed = start.until(Moment.now())
                tokens = embed.tokens - embed.shared - tokens_before
                if turn:
                    times[name].append(passed | {'tokens': tokens / len(texts)})
        difference = max(difference, float(np.abs(vectors['shared'] - vectors['whole']).max()))
    sides = {
        name: {kind: statistics.median(row[kind] for row in rows) for kind in rows[0]}
        for name, rows in times.items()
    }
    cpu_seconds = {name: side['cpu_seconds'] for name, side in sides.items()}
    return {
        'ratio': cpu_seconds['shared'] / cpu_seconds['none'],
        'ratio_of_whole': cpu_seconds['shared'] / cpu_seconds['whole'],
        'difference': difference,
        'sides': sides,
    }


if __name__ == '__main__':
    # Flags are defined here because tests import this module.
    _MODEL = flags.DEFINE_string('model', None, 'A causal language model.', required=True)
    _CANDIDATES = flags.DEFINE_string(
        'candidates',
        None,
        'File of candidate demonstrations, as for launch/demonstrations.py.',
        required=True,
    )
    _DATA_DIR = flags.DEFINE_string(
        'data_dir',
        None,
        'Folder that contains senteval/STS/STSBenchmark/sts-dev.csv.',
        required=True,
    )
    _COUNT = flags.DEFINE_integer('count', 5, 'Number of demonstrations, drawn at random.')
    _TEXTS = flags.DEFINE_integer('texts', 0, 'Maximum number of sentences; 0: all.')
    _ROUNDS = flags.DEFINE_integer('rounds', 1, 'Timed turns of each side for each demonstration.')
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    run_program(main)
