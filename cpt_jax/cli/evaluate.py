r"""Scores a model on benchmarks, beside BM25 and random vectors.

Reads nothing but a model reference. Prints a table, and writes results.json and report/index.html:
the scores, the training curves where the model is a run, and real queries with what the model and
what BM25 finds. Scores of earlier evaluations of the same model stay in results.json, and are not
measured again; an evaluation that is killed goes on where it was. Those of another model,
checkpoint or --representation are replaced: give each an --output of its own.

With --follow it watches a run that is being trained, and scores each checkpoint once: rows of
results.jsonl, points of TensorBoard (eval), curves in the report, and best.json, so that --model
RUN@best:TASK is the checkpoint with the best score. It ends when training ends. Several programs
may follow one run; one that is killed loses nothing.

On several hosts, start the same command on each, as for launch/train.py; process 0 reads the data,
scores and writes.

Example:
  python launch/evaluate.py --model runs/quickstart --tasks 'codesearch/*,retrieval/scifact' \
      --data_dir ~/data
  python launch/evaluate.py --model ~/opt-2.7b --tasks 'sts/*' --data_dir ~/data \
      --representation prompteol --demonstration 'A jockey riding a horse.=Equestrian'
  python launch/evaluate.py --model runs/quickstart --tasks 'sts/*' --data_dir ~/data --follow
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags
from etils import epath

from cpt_jax.cli.model_flags import define_model
from cpt_jax.cli.option_flags import define_option_flags
from cpt_jax.cli.program import define_processes, run_program, use_compilation_cache
from cpt_jax.evals.model_evaluation import check_tasks, embed_with_kept_vectors, evaluate_model
from cpt_jax.evals.registry import (
    find_tasks,
    make_options,
    option_fields,
    scored_options,
    select,
)
from cpt_jax.evals.store.embedding_cache import KeptVectors
from cpt_jax.evals.store.history import HISTORY, format_history, measured_otherwise
from cpt_jax.evals.store.results import RESULTS, format_table
from cpt_jax.evals.suites import without_mean
from cpt_jax.evals.task import Context, Task
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.local_path import local_path

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.embed.function import Embed

MODEL, OPTIONS = define_model(evaluation=True)
JOINED = define_processes()
TASKS = flags.DEFINE_list(
    'tasks',
    ['codesearch/python_source'],
    "Tasks, with commas between them; globs such as 'retrieval/*' select many, suites such as "
    'suite/cpt_beir those of a table.',
)
ALLOW_MISSING = flags.DEFINE_bool(
    'allow_missing',
    False,
    'Run a suite without the tasks whose data are not there; it gets no mean.',
)
DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Holds retrieval/<folder>/ (BEIR, MS MARCO), openqa/<name>/ (NQ, TriviaQA), '
    'codesearch/<name>.jsonl[.gz] (CodeSearchNet), senteval/ (SentEval), sent_bias_seat/tests/ '
    '(SEAT).',
)
OUTPUT = flags.DEFINE_string(
    'output', None, "Where results.json and report/ go; the run's own directory, or else ./results."
)
TASK_OPTIONS = define_option_flags(option_fields())
FOLLOW = flags.DEFINE_bool(
    'follow', False, 'Score every checkpoint of the run --model, as they come, until its last step.'
)
FOLLOW_TIMEOUT = flags.DEFINE_float(
    'follow_timeout',
    0,
    'Minutes without a new checkpoint or score after which --follow ends, with status 0; 0: only '
    'when training ends.',
    lower_bound=0,
)
KEEP_BEST = flags.DEFINE_bool(
    'keep_best', True, 'With --follow: keep the best checkpoint of each task in best/ of the run.'
)
AGAIN = flags.DEFINE_bool(
    'again',
    False,
    'Measure again what has been scored already, after a change that the fingerprints do not see.',
)
CACHE_DIR = flags.DEFINE_string(
    'cache_dir',
    None,
    "Where vectors are until their task is done, vectors/ in --output by default; '': nowhere.",
)
KEEP_VECTORS = flags.DEFINE_bool(
    'keep_vectors', False, 'Leave them in --cache_dir, for another evaluation of the same texts.'
)


def _select(tasks: dict[str, Task]) -> list[Task]:
    return select(tasks, TASKS.value, DATA_DIR.value, ALLOW_MISSING.value)


def main() -> None:
    use_compilation_cache()
    _check_flags()
    with JOINED():
        import jax  # which waits until run_program has chosen its platform

        if FOLLOW.value and jax.process_count() > 1:
            raise UserError(
                '--follow: on one process alone; several evaluate a checkpoint with --model '
                'RUN@STEP'
            )
        if jax.process_index():
            run_as_worker()
        else:
            run_as_leader()


def run_as_leader() -> None:
    """Reads the data, scores and writes: on process 0 only."""
    from cpt_jax.search import across_hosts

    check_tasks(TASKS.value, DATA_DIR.value, TASK_OPTIONS(), ALLOW_MISSING.value)
    if FOLLOW.value:
        _follow()
    else:
        _evaluate()
        across_hosts.release_workers()


def run_as_worker() -> None:
    """Computes what process 0 asks for: on all other processes."""
    from cpt_jax.embed.load import load_embedder
    from cpt_jax.search import across_hosts

    embedder = load_embedder(MODEL.value, **OPTIONS())
    _check_alike(embedder)
    across_hosts.work_for_leader(cast('Embed', embedder))


def _check_alike(embedder: 'Embedder') -> None:
    """Processes that open a run while it is trained may find different checkpoints."""
    from cpt_jax.runtime.multihost import check_alike

    line = (
        'the processes opened different models or read texts differently: give RUN@STEP, and the '
        'same flags on every host'
    )
    check_alike(
        [embedder.model_name, embedder.settings],
        f'--model {MODEL.value} (here {embedder.model_name}): {line}',
    )


def _check_flags() -> None:
    local_path(OUTPUT.value or '', '--output')
    if FOLLOW.value and OUTPUT.value:
        raise UserError(
            f'--output {OUTPUT.value}: --follow writes into the directory of the run: leave it out'
        )
    make_options(**TASK_OPTIONS())
    if FOLLOW.value and AGAIN.value:
        raise UserError(
            '--again: --follow scores a checkpoint once; remove its rows from results.jsonl to '
            'have it scored again'
        )
    if FOLLOW.value and not Path(MODEL.value).is_dir():
        raise UserError(
            f'--model {MODEL.value}: no such directory: --follow watches the directory of a run '
            f'that is, or was, trained'
        )


def _evaluate() -> None:
    # Imports JAX, which waits until run_program has chosen its platform.
    from cpt_jax.embed.load import load_embedder

    embedder = load_embedder(MODEL.value, **OPTIONS())
    _check_alike(embedder)
    output = epath.Path(OUTPUT.value or embedder.workdir or 'results')
    results = evaluate_model(
        embedder,
        MODEL.value,
        TASKS.value,
        DATA_DIR.value,
        output,
        TASK_OPTIONS(),
        vectors=_cache_folder(Path(output)),
        keep_vectors=KEEP_VECTORS.value,
        allow_missing=ALLOW_MISSING.value,
        again=AGAIN.value,
    )
    print(format_table(results))
    for name, row in results['tasks'].items():
        if seen := row['settings'].get('functions_trained_on'):
            print(
                f'{name}: {seen:,} of its functions were trained on, so its scores say little: '
                f'hold out what the default does'
            )
    for line in without_mean(results, TASKS.value):
        print(line)
    print(
        f'\nscores x100, effect sizes and p-values as they are; written to {output / RESULTS} and '
        f'{output / "report" / "index.html"}'
    )


def _follow() -> None:
    from cpt_jax.embed.load import load_embedder, read_settings
    from cpt_jax.evals.follow import Follower, follow
    from cpt_jax.origin.resolve import check_is_run

    check_is_run(MODEL.value, '--model')
    options = OPTIONS()
    if options['pooling']:
        raise UserError(
            f'--pooling {options["pooling"]}: --follow watches a run, whose config says its '
            f'pooling; leave the flag out'
        )
    run = Path(MODEL.value).absolute()
    before: list[Embedder] = []

    def load(step: int) -> KeptVectors:
        for embedder in before:
            # Its memory is needed, whoever still holds it.
            embedder.encoder = None  # type: ignore[assignment]
        before[:] = [load_embedder(f'{run}@{step}', **options)]
        return embed_with_kept_vectors(before[0], _cache_folder(run), KEEP_VECTORS.value)

    def settings_of(step: int) -> dict[str, Any]:
        return read_settings(f'{run}@{step}', options['representation'])

    def tasks_of(settings: Mapping[str, Any]) -> list[Task]:
        # Rankings of one checkpoint must not replace those of another.
        runs = epath.Path(RunDir(run).trec_runs / str(settings['step']))
        return _select(find_tasks(DATA_DIR.value, Context(settings, runs), **TASK_OPTIONS()))

    follower = Follower(
        run, tasks_of, _fingerprint_model_scores(), settings_of, load, KEEP_BEST.value
    )
    why = follow(follower, 60 * FOLLOW_TIMEOUT.value)
    print(format_history(follower.rows))
    for task in measured_otherwise(follower.rows, follower.asked):
        print(
            f'{task}: these scores, and best.json, are of a later --follow with other flags or '
            f'data; those of this command stand in {HISTORY} too, and count again where the rows '
            'of the other are removed'
        )
    print(
        f'\n{why}; {run / HISTORY}, {run / "report" / "index.html"}, tensorboard --logdir '
        f'{run / "tensorboard"}'
    )


def _fingerprint_model_scores() -> dict[str, str]:
    """Returns the fingerprint of each selected task, with defaults for options that change no score
    of the model: another value of these must not make all rows those of another evaluation.
    """
    chosen = scored_options(TASK_OPTIONS())
    tasks = _select(find_tasks(DATA_DIR.value, **chosen))
    return {task.name: task.fingerprint() for task in tasks}


def _cache_folder(output: Path) -> Path | None:
    """Returns where vectors are kept. --again is for changes that are not seen here, such as those
    of the code: then nowhere.
    """
    if AGAIN.value or CACHE_DIR.value == '':
        return None
    return Path(CACHE_DIR.value) if CACHE_DIR.value else RunDir(output).vectors


def run() -> None:
    """The console script cpt-evaluate."""
    run_program(main)
