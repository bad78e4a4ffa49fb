"""Scores a model on benchmarks, beside BM25 and random vectors.

Reads nothing but a model reference. Prints a table, and writes results.json and report/index.html: the scores, the training
curves where the model is a run, and real queries with what the model and what BM25 finds. Scores of earlier evaluations of the
same model stay in results.json.

Example:
  python launch/evaluate.py --model runs/quickstart --tasks 'codesearch/*,retrieval/scifact' --data_dir ~/data
  python launch/evaluate.py --model ~/opt-2.7b --tasks 'sts/*' --data_dir ~/data --representation prompteol
    --demonstration 'A jockey riding a horse.=Equestrian'
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.evals.evaluation import evaluate
from cpt_jax.evals.knn import TEMPLATE, WORDS
from cpt_jax.evals.probe import PROTOCOLS
from cpt_jax.evals.results import RESULTS, format_table
from cpt_jax.evals.suite import find_tasks, select
from cpt_jax.evals.task import Task
from cpt_jax.program import define_model, run_program, use_compilation_cache

MODEL, OPTIONS = define_model(evaluation=True)
TASKS = flags.DEFINE_list(
    'tasks', ['codesearch/python_source'], "Tasks, with commas between them; globs such as 'retrieval/*' select many."
)
DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Holds retrieval/<folder>/ (BEIR), codesearch/<name>.jsonl[.gz] (CodeSearchNet), senteval/ (SentEval), sent_bias_seat/tests/ (SEAT).',
)
OUTPUT = flags.DEFINE_string('output', None, "Where results.json and report/ go; the run's own directory, or else ./results.")
SPLIT = flags.DEFINE_enum(
    'split',
    'test',
    ['test', 'dev', 'train'],
    'Of retrieval tasks (qrels/<split>.tsv), sts/STSBenchmark and sts/SICK-R; STS12 to 16 have test alone.',
)
K = flags.DEFINE_integer('k', 100, 'Documents kept for each query of a retrieval task; recall is measured there.', lower_bound=10)
CANDIDATES = flags.DEFINE_integer('candidates', 1000, 'Functions searched for each query of a code search task.', lower_bound=2)
CODE_TEXT = flags.DEFINE_enum(
    'code_text', 'raw', ['raw', 'tokens'], 'Fields of CodeSearchNet files: docstring and code, or the token lists as CodeBERT has them.'
)
PROBE_PROTOCOL = flags.DEFINE_enum('probe_protocol', 'lbfgs', [*PROTOCOLS], 'Of probe/*: ' + '; '.join(map(': '.join, PROTOCOLS.items())))
LABEL_WORDS = flags.DEFINE_list('label_words', [*WORDS], 'Of zeroshot/*: the labels in words, label 0 first.')
LABEL_TEMPLATE = flags.DEFINE_string('label_template', TEMPLATE, 'Of zeroshot/*: the sentence that describes a label; {} is its word.')

SIDE = flags.DEFINE_enum(
    'symmetric_side', 'x', ['x', 'y'], 'Side of all texts of tasks with one kind of text (sts, bias): the papers do not say which.'
)


def _tasks(trained_on: Sequence[Mapping]) -> list[Task]:
    """The tasks that the flags select."""
    found = find_tasks(
        DATA_DIR.value,
        SPLIT.value,
        K.value,
        CANDIDATES.value,
        CODE_TEXT.value,
        trained_on,
        symmetric_side=SIDE.value,
        probe_protocol=PROBE_PROTOCOL.value,
        label_words=LABEL_WORDS.value,
        label_template=LABEL_TEMPLATE.value,
    )
    return select(found, TASKS.value, DATA_DIR.value)


def main() -> None:
    from cpt_jax.embed import load_embedder  # imports JAX, which waits until run_program has chosen its platform

    use_compilation_cache()
    _tasks([])  # a wrong name is told before the model is loaded
    embedder = load_embedder(MODEL.value, **OPTIONS())
    sections = [section for section in embedder.settings['trained_on'].values() if section['kind'] == 'python_source']
    tasks = _tasks([{key: value for key, value in section.items() if key not in ('kind', 'weight')} for section in sections])
    output = epath.Path(OUTPUT.value or embedder.workdir or 'results')
    metrics_path = epath.Path(embedder.workdir) / 'metrics.jsonl' if embedder.workdir else None

    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        return embedder(texts, side, progress={'x': 'queries', 'y': 'documents'}[side])

    results = evaluate(embed, embedder.model_name, embedder.settings, tasks, output, metrics_path)
    print(format_table(results))
    for name, row in results['tasks'].items():
        if seen := row['settings'].get('functions_trained_on'):
            print(f'{name}: {seen:,} of its functions were trained on, so its scores say little: hold out what the default does')
    print(f'\nscores x100, effect sizes and p-values as they are; written to {output / RESULTS} and {output / "report" / "index.html"}')


if __name__ == '__main__':
    run_program(main)
