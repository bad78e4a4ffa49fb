r"""Scores a model on benchmarks, next to BM25 and random vectors as baselines.

Only --model is required, or --compare. Prints a table of scores, and writes results.json and
report/index.html: scores, training curves if the model is a run, and real queries with the results
of the model and of BM25. Scores of earlier evaluations of the same model stay in results.json and
are not computed again; run the same command to resume an evaluation that was killed. Scores of
another model, checkpoint or --representation in the same --output are replaced, so give each of
them its own --output.

With --follow, the program watches a run in training and scores each checkpoint once. It writes
rows of results.jsonl, TensorBoard scalars (eval), curves in the report, and best.json, so that
--model RUN@best:TASK loads the checkpoint with the best score. It ends when training ends. Several
programs may follow one run; a killed program loses no scores.

--compare A B reads two results, of another model or of the same one with other settings, and prints
the difference of each task with its 95% interval.

To use several hosts, start the same command on each, as for launch/train.py; process 0 reads the
data, scores and writes.

Example:
  python launch/evaluate.py --model runs/quickstart --tasks 'codesearch/*,retrieval/scifact' \
      --data_dir ~/data
  python launch/evaluate.py --model ~/opt-2.7b --tasks 'sts/*' --data_dir ~/data \
      --representation prompteol --demonstration 'A jockey riding a horse.=Equestrian'
  python launch/evaluate.py --model runs/quickstart --tasks 'sts/*' --data_dir ~/data --follow
  python launch/evaluate.py --compare results/base results/tuned
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags
from etils import epath

from cpt_jax.cli.model_flags import define_model_flags
from cpt_jax.cli.option_flags import define_option_flags
from cpt_jax.cli.program import define_process_flags, run_program, use_compilation_cache
from cpt_jax.evals.intervals.paired import compare_results, format_differences, read_results
from cpt_jax.evals.model_evaluation import (
    check_tasks,
    evaluate_model,
    find_vectors_folder,
    make_caching_embed,
)
from cpt_jax.evals.registry import (
    fetch_data_dir,
    find_option_fields,
    find_tasks,
    make_options,
    select_score_options,
    select_tasks,
)
from cpt_jax.evals.store.embedding_cache import CachingEmbed
from cpt_jax.evals.store.history import HISTORY, find_remeasured_tasks, format_history
from cpt_jax.evals.store.results import RESULTS, format_table
from cpt_jax.evals.suites import explain_missing_means
from cpt_jax.evals.task import Context, Task
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import as_path, make_absolute, make_path

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.embed.function import Embed

MODEL, read_model_options = define_model_flags(evaluation=True, required=False)
join_processes = define_process_flags()
TASKS = flags.DEFINE_list(
    'tasks',
    ['codesearch/python_source'],
    "Tasks, separated by commas: names, globs such as 'retrieval/*', or suites such as "
    'suite/cpt_beir (the tasks of a published table).',
)
ALLOW_MISSING = flags.DEFINE_bool(
    'allow_missing',
    False,
    'Run a suite without the tasks whose data are missing; its mean is then omitted.',
)
DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Directory, local or in a bucket (gs://...), with retrieval/<folder>/ (BEIR, MS MARCO), '
    'openqa/<name>/ (NQ, TriviaQA), '
    'codesearch/<name>.jsonl[.gz] (CodeSearchNet), senteval/ (SentEval), sent_bias_seat/tests/ '
    '(SEAT).',
)
OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Directory for results.json and report/. Default: the directory of the run, or ./results for '
    'other models.',
)
read_task_options = define_option_flags(find_option_fields())
FOLLOW = flags.DEFINE_bool(
    'follow', False, 'Score every checkpoint of the run --model as it is saved, until the last.'
)
FOLLOW_TIMEOUT = flags.DEFINE_float(
    'follow_timeout',
    0,
    'With --follow: minutes without a new checkpoint or score after which the program exits with '
    'status 0; 0 waits until training ends.',
    lower_bound=0,
)
KEEP_BEST = flags.DEFINE_bool(
    'keep_best',
    True,
    'With --follow: keep the best checkpoint of each task in best/ of the run.',
)
AGAIN = flags.DEFINE_bool(
    'again',
    False,
    'Score all tasks again, for example after a code change, which fingerprints do not detect.',
)
CACHE_DIR = flags.DEFINE_string(
    'cache_dir',
    None,
    'Directory for vectors until their task is finished. Default: vectors/ in --output; '
    "'' disables the cache.",
)
KEEP_VECTORS = flags.DEFINE_bool(
    'keep_vectors',
    False,
    'Keep vectors in --cache_dir after their task, for another evaluation of the same texts.',
)
COMPARE = flags.DEFINE_list(
    'compare',
    [],
    'Two results to compare, A and B: directories with results.json and scores/, such as the '
    '--output of two evaluations. Nothing is scored.',
)


@functools.cache
def _read_data_dir() -> str | None:
    """Returns the local path of --data_dir, which is copied into the cache if it is remote."""
    return fetch_data_dir(DATA_DIR.value, TASKS.value)


def _select_tasks(tasks: dict[str, Task]) -> list[Task]:
    """Returns the available tasks that --tasks selects."""
    return select_tasks(tasks, TASKS.value, _read_data_dir(), ALLOW_MISSING.value)


def main() -> None:
    if COMPARE.value:
        _print_comparison(COMPARE.value)
        return
    use_compilation_cache()
    _check_flags()
    with join_processes():
        import jax  # here, because run_program chooses the platform first

        if FOLLOW.value and jax.process_count() > 1:
            raise UserError(
                '--follow: runs as one process only; to use several processes, evaluate each '
                'checkpoint with --model RUN@STEP'
            )
        if jax.process_index():
            run_as_worker()
        else:
            run_as_leader()


def _print_comparison(references: Sequence[str]) -> None:
    """Prints the differences between two results."""
    if MODEL.value:
        raise UserError('--compare reads results and loads no model: remove --model')
    if len(references) != 2:
        raise UserError(
            f'--compare {" ".join(references)}: give two results, as in --compare results/a '
            f'results/b'
        )
    first, second = references
    results = read_results(first), read_results(second)
    differences = compare_results(*results)
    print(format_differences(differences, results, (first, second)))


def run_as_leader() -> None:
    """Reads the data, scores and writes; runs on process 0 only."""
    from cpt_jax.search import across_hosts

    check_tasks(TASKS.value, _read_data_dir(), read_task_options(), ALLOW_MISSING.value)
    if FOLLOW.value:
        _evaluate_new_checkpoints()
    else:
        _evaluate_once()
        across_hosts.release_workers()


def run_as_worker() -> None:
    """Computes what process 0 requests; runs on all other processes."""
    from cpt_jax.embed.load import load_embedder
    from cpt_jax.search import across_hosts

    embedder = load_embedder(MODEL.value, **read_model_options())
    _check_same_model(embedder)
    across_hosts.work_for_leader(cast('Embed', embedder))


def _check_same_model(embedder: 'Embedder') -> None:
    """Raises UserError if the processes loaded different models.

    This happens if a run saves a checkpoint while the processes open it.
    """
    from cpt_jax.runtime.multihost import check_processes_agree

    advice = (
        'the processes loaded different models or process texts differently: give RUN@STEP, and '
        'the same flags on every host'
    )
    check_processes_agree(
        [embedder.model_name, embedder.settings],
        f'--model {MODEL.value} (this process loaded {embedder.model_name}): {advice}',
    )


def _check_flags() -> None:
    """Raises UserError for flags that are missing or cannot be used together."""
    if not MODEL.value:
        raise UserError('give --model, or --compare with two results')
    make_path(OUTPUT.value or '', '--output')
    if FOLLOW.value and OUTPUT.value:
        raise UserError(
            f'--output {OUTPUT.value}: --follow writes into the directory of the run: remove the '
            f'flag'
        )
    make_options(**read_task_options())
    if FOLLOW.value and AGAIN.value:
        raise UserError(
            '--again: --follow scores each checkpoint once; to score one again, remove its rows '
            'from results.jsonl'
        )
    if FOLLOW.value and not make_path(MODEL.value, '--model').is_dir():
        raise UserError(
            f'--model {MODEL.value}: no such directory: --follow needs the directory of a run'
        )


def _evaluate_once() -> None:
    # Imports JAX, whose platform run_program chooses first.
    from cpt_jax.embed.load import load_embedder

    embedder = load_embedder(MODEL.value, **read_model_options())
    _check_same_model(embedder)
    print('\n'.join(embedder.summary), flush=True)
    output = epath.Path(OUTPUT.value or embedder.workdir or 'results')
    results = evaluate_model(
        embedder,
        MODEL.value,
        TASKS.value,
        _read_data_dir(),
        output,
        read_task_options(),
        vectors=_choose_cache_folder(as_path(output)),
        keep_vectors=KEEP_VECTORS.value,
        allow_missing=ALLOW_MISSING.value,
        again=AGAIN.value,
    )
    print(format_table(results))
    for name, row in results['tasks'].items():
        if seen := row['settings'].get('functions_trained_on'):
            print(
                f'{name}: the model was trained on {seen:,} of its functions, so these scores are '
                f'not meaningful: train with the default held-out packages'
            )
    for line in explain_missing_means(results, TASKS.value):
        print(line)
    print(
        f'\nscores x100 (effect sizes and p-values unscaled); written to {output / RESULTS} and '
        f'{output / "report" / "index.html"}'
    )


def _evaluate_new_checkpoints() -> None:
    from cpt_jax.embed.load import load_embedder, read_settings
    from cpt_jax.evals.follow import Follower, follow
    from cpt_jax.origin.resolve import check_is_run

    check_is_run(MODEL.value, '--model')
    options = read_model_options()
    if options['pooling']:
        raise UserError(
            f'--pooling {options["pooling"]}: --follow uses the pooling of the run: remove the flag'
        )
    run = make_absolute(make_path(MODEL.value, '--model'))
    loaded: list[Embedder] = []  # at most one: the embedder of the previous checkpoint

    def load(step: int) -> CachingEmbed:
        for embedder in loaded:
            # Frees its device memory even if something still refers to the embedder.
            embedder.encoder = None  # type: ignore[assignment]
        loaded[:] = [load_embedder(f'{run}@{step}', **options)]
        return make_caching_embed(loaded[0], _choose_cache_folder(run), KEEP_VECTORS.value)

    def read_step_settings(step: int) -> dict[str, Any]:
        return read_settings(f'{run}@{step}', options['representation'], options['dimensions'])

    def make_tasks(settings: Mapping[str, Any]) -> list[Task]:
        # A folder per step, so that rankings of one checkpoint do not replace those of another.
        runs = epath.Path(RunDir(run).trec_runs / str(settings['step']))
        return _select_tasks(
            find_tasks(_read_data_dir(), Context(settings, runs), **read_task_options())
        )

    follower = Follower(
        run, make_tasks, _fingerprint_model_scores(), read_step_settings, load, KEEP_BEST.value
    )
    reason = follow(follower, 60 * FOLLOW_TIMEOUT.value)
    print(format_history(follower.rows))
    for task in find_remeasured_tasks(follower.rows, follower.row_fingerprints):
        print(
            f'{task}: the scores shown here and in best.json are from a later --follow with other '
            f'flags or data; the scores of this command are also in {HISTORY}, and are used again '
            'once the rows of the other command are removed'
        )
    print(
        f'\n{reason}; {run / HISTORY}, {run / "report" / "index.html"}, tensorboard --logdir '
        f'{run / "tensorboard"}'
    )


def _fingerprint_model_scores() -> dict[str, str]:
    """Returns the fingerprint of each selected task, by name.

    Options that do not change the model's scores have their defaults here, so that a change of such
    an option does not make existing rows look like those of another evaluation.
    """
    chosen = select_score_options(read_task_options())
    tasks = _select_tasks(find_tasks(_read_data_dir(), **chosen))
    return {task.name: task.fingerprint() for task in tasks}


def _choose_cache_folder(output: Path) -> Path | None:
    """Returns the folder in which vectors are kept, or None if they are not kept.

    They are not kept with --again, because a cached vector would hide the change (for example of
    the code) that is the reason to score again.
    """
    if AGAIN.value or CACHE_DIR.value == '':
        return None
    if CACHE_DIR.value:
        return Path(CACHE_DIR.value)
    return find_vectors_folder(output)


def run() -> None:
    """Runs the console script cpt-evaluate."""
    run_program(main, list_flag='compare')
