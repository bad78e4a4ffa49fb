"""Scores a model on benchmarks, beside BM25 and random vectors.

Reads nothing but a model reference. Prints a table, and writes results.json and report/index.html: the scores, the training
curves where the model is a run, and real queries with what the model and what BM25 finds. Scores of earlier evaluations of the
same model stay in results.json, and are not measured again; an evaluation that is killed goes on where it was. Those of another model,
checkpoint or --representation are replaced: give each an --output of its own.

With --follow it watches a run that is being trained, and scores each checkpoint once: rows of results.jsonl, points of TensorBoard (eval),
curves in the report, and best.json, so that --model RUN@best:TASK is the checkpoint with the best score. It ends when training ends.
Several programs may follow one run; one that is killed loses nothing.

On several hosts, start the same command on each, as for launch/train.py; process 0 reads the data, scores and writes.

Example:
  python launch/evaluate.py --model runs/quickstart --tasks 'codesearch/*,retrieval/scifact' --data_dir ~/data
  python launch/evaluate.py --model ~/opt-2.7b --tasks 'sts/*' --data_dir ~/data --representation prompteol
    --demonstration 'A jockey riding a horse.=Equestrian'
  python launch/evaluate.py --model runs/quickstart --tasks 'sts/*' --data_dir ~/data --follow
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals.beir import check_judged
from cpt_jax.evals.codesearch import BOTH, DIRECTIONS
from cpt_jax.evals.embedding_cache import EmbeddingCache, KeptVectors
from cpt_jax.evals.evaluation import evaluate
from cpt_jax.evals.history import HISTORY, format_history, measured_otherwise
from cpt_jax.evals.inputs import fingerprints, weights_fingerprint
from cpt_jax.evals.knn import TEMPLATE, WORDS
from cpt_jax.evals.probe import PROTOCOLS
from cpt_jax.evals.results import RESULTS, format_table
from cpt_jax.evals.retrieval import Retrieval
from cpt_jax.evals.searcher import BASELINES, INDEXES, Searcher
from cpt_jax.evals.suite import find_tasks, select
from cpt_jax.evals.suites import without_mean
from cpt_jax.evals.task import Task
from cpt_jax.program import define_model, define_processes, run_program, use_compilation_cache

if TYPE_CHECKING:
    from cpt_jax.embed import Embedder

MODEL, OPTIONS = define_model(evaluation=True)
JOINED = define_processes()
TASKS = flags.DEFINE_list(
    'tasks',
    ['codesearch/python_source'],
    "Tasks, with commas between them; globs such as 'retrieval/*' select many, suites such as suite/cpt_beir those of a table.",
)
ALLOW_MISSING = flags.DEFINE_bool('allow_missing', False, 'Run a suite without the tasks whose data are not there; it gets no mean.')
DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Holds retrieval/<folder>/ (BEIR, MS MARCO), openqa/<name>/ (NQ, TriviaQA), codesearch/<name>.jsonl[.gz] (CodeSearchNet), senteval/ '
    '(SentEval), sent_bias_seat/tests/ (SEAT).',
)
OUTPUT = flags.DEFINE_string('output', None, "Where results.json and report/ go; the run's own directory, or else ./results.")
SPLIT = flags.DEFINE_enum(
    'split',
    None,
    ['test', 'dev', 'train'],
    'Of retrieval tasks (qrels/<split>.tsv), sts/STSBenchmark and sts/SICK-R. By default test, and dev of msmarco; STS12 to 16 have test'
    ' alone.',
)
K = flags.DEFINE_integer('k', 100, 'Documents kept for each query of a retrieval task; recall is measured there.', lower_bound=10)
INDEX = flags.DEFINE_enum(
    'index', 'exact', INDEXES, "What searches documents: exactly, or an index of FAISS's, whose recall against exact search is told too."
)
SEARCH_MEMORY = flags.DEFINE_float(
    'search_memory', 2.0, 'GiB for the blocks of documents and of scores of exact search, of all devices together.', lower_bound=0.001
)
COMPARED = flags.DEFINE_list(
    'baselines', [*BASELINES], f'What retrieval and openqa tasks are compared with: of {", ".join(BASELINES)}, or none.'
)
TREC_RUNS = flags.DEFINE_bool(
    'trec_runs', False, "Write the rankings of retrieval and openqa tasks in TREC's form: OUTPUT/runs/<task>.trec."
)
CANDIDATES = flags.DEFINE_integer(
    'candidates', 1000, 'Functions searched for each query of a code search task; the papers have 1000, 10000 and 0: all.', lower_bound=0
)
DIRECTION = flags.DEFINE_enum('code_direction', 'text_to_code', [*DIRECTIONS, BOTH], 'What is looked for in code search tasks.')
CODE_TEXT = flags.DEFINE_enum(
    'code_text', 'raw', ['raw', 'tokens'], 'Fields of CodeSearchNet files: docstring and code, or the token lists as CodeBERT has them.'
)
PROBE_PROTOCOL = flags.DEFINE_enum('probe_protocol', 'lbfgs', [*PROTOCOLS], 'Of probe/*: ' + '; '.join(map(': '.join, PROTOCOLS.items())))
LABEL_WORDS = flags.DEFINE_list('label_words', [*WORDS], 'Of zeroshot/*: the labels in words, label 0 first.')
LABEL_TEMPLATE = flags.DEFINE_string('label_template', TEMPLATE, 'Of zeroshot/*: the sentence that describes a label; {} is its word.')
FOLLOW = flags.DEFINE_bool('follow', False, 'Score every checkpoint of the run --model, as they come, until its last step.')
FOLLOW_TIMEOUT = flags.DEFINE_float(
    'follow_timeout',
    0,
    'Minutes without a new checkpoint or score after which --follow ends, with status 0; 0: only when training ends.',
    lower_bound=0,
)
KEEP_BEST = flags.DEFINE_bool('keep_best', True, 'With --follow: keep the best checkpoint of each task in best/ of the run.')
AGAIN = flags.DEFINE_bool('again', False, 'Measure again what has been scored already, after a change that the fingerprints do not see.')
CACHE_DIR = flags.DEFINE_string(
    'cache_dir', None, "Where vectors are until their task is done, vectors/ in --output by default; '': nowhere."
)
KEEP_VECTORS = flags.DEFINE_bool('keep_vectors', False, 'Leave them in --cache_dir, for another evaluation of the same texts.')
UNJUDGED = flags.DEFINE_enum(
    'unjudged',
    'refuse',
    ['refuse', 'skip'],
    'Queries of a retrieval task without a judgement in any file of qrels/: an error, or left out.',
)
SIDE = flags.DEFINE_enum(
    'symmetric_side', 'x', ['x', 'y'], 'Side of all texts of tasks with one kind of text (sts, bias): the papers do not say which.'
)


def _choices() -> dict[str, object]:
    """What the user chose of what scores depend on, and of what is written beside them."""
    return {
        'split': SPLIT.value or '',
        'k': K.value,
        'candidates': CANDIDATES.value,
        'code_text': CODE_TEXT.value,
        'code_direction': DIRECTION.value,
        'symmetric_side': SIDE.value,
        'probe_protocol': PROBE_PROTOCOL.value,
        'label_words': LABEL_WORDS.value,
        'label_template': LABEL_TEMPLATE.value,
        'index': INDEX.value,
        'baselines': [name for name in COMPARED.value if name != 'none'],
        'trec_runs': TREC_RUNS.value,
    }


def _tasks(settings: Mapping[str, Any], output: Path | None = None) -> list[Task]:
    """The tasks that the flags select, for a model with these settings; `output` is where they may write more than scores."""
    chosen = _choices()
    searcher = Searcher(chosen.pop('index'), SEARCH_MEMORY.value, chosen.pop('baselines'))
    runs = epath.Path(output) / 'runs' if chosen.pop('trec_runs') and output else None
    runs = runs / str(settings['step']) if runs and FOLLOW.value else runs  # of each checkpoint its own
    sections = [section for section in settings.get('trained_on', {}).values() if section['kind'] == 'python_source']
    trained_on = [{key: value for key, value in section.items() if key not in ('kind', 'weight')} for section in sections]
    found = find_tasks(DATA_DIR.value, trained_on=trained_on, searcher=searcher, runs=runs, **chosen)
    return select(found, TASKS.value, DATA_DIR.value, ALLOW_MISSING.value)


def _fingerprints(tasks: Sequence[Task]) -> dict[str, str]:
    return fingerprints(tasks, _choices(), DATA_DIR.value)


def main() -> None:
    use_compilation_cache()
    _check_flags()
    with JOINED():
        import jax  # which waits until run_program has chosen its platform

        if FOLLOW.value and jax.process_count() > 1:
            raise UserError('--follow: on one process alone; several evaluate a checkpoint with --model RUN@STEP')
        _assist() if jax.process_index() else _lead()


def _lead() -> None:
    """On process 0, which alone reads the data, scores and writes."""
    from cpt_jax.evals import everywhere

    tasks = _tasks({})  # a wrong name is told before the model is loaded
    for task in tasks:
        if isinstance(task, Retrieval) and UNJUDGED.value == 'refuse':
            check_judged(task.folder)
    if FOLLOW.value:
        _follow()
    else:
        _evaluate()
        everywhere.dismiss()


def _assist() -> None:
    """On the other processes of several."""
    from cpt_jax.embed import load_embedder
    from cpt_jax.evals import everywhere

    embedder = load_embedder(MODEL.value, **OPTIONS())
    _check_alike(embedder)
    everywhere.assist(embedder)


def _check_alike(embedder: 'Embedder') -> None:
    """Processes that open a run while it is trained may find different checkpoints."""
    from cpt_jax.processes import check_alike

    line = 'the processes opened different models or read texts differently: give RUN@STEP, and the same flags on every host'
    check_alike([embedder.model_name, embedder.settings], f'--model {MODEL.value} (here {embedder.model_name}): {line}')


def _check_flags() -> None:
    if '://' in (OUTPUT.value or ''):
        raise UserError(f'--output {OUTPUT.value}: only paths of the file system so far; mount the bucket (gcsfuse) and give that path')
    if FOLLOW.value and OUTPUT.value:
        raise UserError(f'--output {OUTPUT.value}: --follow writes into the directory of the run: leave it out')
    if unknown := {*COMPARED.value} - {*BASELINES, 'none'}:
        raise UserError(f'--baselines {",".join(unknown)}: there are {", ".join(BASELINES)} and none')
    if CANDIDATES.value == 1:
        raise UserError('--candidates 1: the right one would be the only one; give 2 or more, or 0 for all')
    if FOLLOW.value and AGAIN.value:
        raise UserError('--again: --follow scores a checkpoint once; remove its rows from results.jsonl to have it scored again')
    if FOLLOW.value and not Path(MODEL.value).is_dir():
        raise UserError(f'--model {MODEL.value}: no such directory: --follow watches the directory of a run that is, or was, trained')


def _evaluate() -> None:
    from cpt_jax.embed import load_embedder  # imports JAX, which waits until run_program has chosen its platform
    from cpt_jax.pretrained import directories_of

    embedder = load_embedder(MODEL.value, **OPTIONS())
    _check_alike(embedder)
    output = epath.Path(OUTPUT.value or embedder.workdir or 'results')
    metrics_path = epath.Path(embedder.workdir) / 'metrics.jsonl' if embedder.workdir else None
    if not embedder.workdir:  # a checkpoint of a run says when it was saved
        embedder.settings['weights'] = weights_fingerprint(*directories_of(MODEL.value))
    settings = embedder.settings
    embed = _with_cache(embedder, Path(output))
    tasks = _tasks(settings, Path(output))
    results = evaluate(embed, embedder.model_name, settings, tasks, output, metrics_path, _fingerprints(tasks), AGAIN.value)
    print(format_table(results))
    for name, row in results['tasks'].items():
        if seen := row['settings'].get('functions_trained_on'):
            print(f'{name}: {seen:,} of its functions were trained on, so its scores say little: hold out what the default does')
    for line in without_mean(results, TASKS.value):
        print(line)
    print(f'\nscores x100, effect sizes and p-values as they are; written to {output / RESULTS} and {output / "report" / "index.html"}')


def _follow() -> None:
    from cpt_jax.embed import load_embedder, read_settings
    from cpt_jax.evals.follow import Follower, follow
    from cpt_jax.pretrained import is_pretrained

    if is_pretrained(MODEL.value) and not (Path(MODEL.value) / 'checkpoints').is_dir():  # a run may have no data.json yet
        raise UserError(f'--model {MODEL.value}: a pretrained model, which has no checkpoints to follow: leave --follow out')
    options = OPTIONS()
    if options['pooling']:
        raise UserError(f'--pooling {options["pooling"]}: --follow watches a run, whose config says its pooling; leave the flag out')
    run, before = Path(MODEL.value).absolute(), []

    def load(step: int) -> KeptVectors:
        for embedder in before:
            embedder.encoder = None  # its memory is needed, whoever still holds it
        before[:] = [load_embedder(f'{run}@{step}', **options)]
        return _with_cache(before[0], run)

    settings_of = lambda step: read_settings(f'{run}@{step}', options['representation'])  # noqa: E731
    tasks = lambda settings: _tasks(settings, run)  # noqa: E731
    # No score of the model depends on these: other ones must not make the rows that there are those of another evaluation.
    neutral = _choices() | {'baselines': [*BASELINES], 'trec_runs': False}
    marks = fingerprints(_tasks({}), neutral, DATA_DIR.value)
    follower = Follower(run, tasks, marks, settings_of, load, KEEP_BEST.value)
    why = follow(follower, 60 * FOLLOW_TIMEOUT.value)
    print(format_history(follower.rows))
    for task in measured_otherwise(follower.rows, follower.asked):
        print(
            f'{task}: these scores, and best.json, are of a later --follow with other flags or data; those of this command stand in'
            f' {HISTORY} too, and count again where the rows of the other are removed'
        )
    print(f'\n{why}; {run / HISTORY}, {run / "report" / "index.html"}, tensorboard --logdir {run / "tensorboard"}')


def _with_cache(embedder: 'Embedder', output: Path) -> KeptVectors:
    """The embedder with a progress bar, and a memory for the case that it is killed."""

    from cpt_jax.evals import everywhere

    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        return embedder(texts, side, progress={'x': 'queries', 'y': 'documents'}[side])

    folder = output / 'vectors' if CACHE_DIR.value is None else CACHE_DIR.value and Path(CACHE_DIR.value)
    folder = None if AGAIN.value else folder  # it is for changes that nothing here sees
    cache = EmbeddingCache(folder or None, embedder.window, KEEP_VECTORS.value)
    return cache.of_model(everywhere.embedding(embed), embedder.model_name, embedder.settings)


if __name__ == '__main__':
    run_program(main)
