"""The evaluation of a model reference: what launch/evaluate.py and `cpt_jax.evaluate` both do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from etils import epath

from cpt_jax.evals.fingerprint import fingerprint_weights
from cpt_jax.evals.registry import find_tasks, select
from cpt_jax.evals.run import run_tasks
from cpt_jax.evals.store.embedding_cache import EmbeddingCache, KeptVectors
from cpt_jax.evals.task import Context
from cpt_jax.runs.run_dir import RunDir

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.text.tokenizer import Side

PROGRESS = {'x': 'queries', 'y': 'documents'}  # side -> label of the progress bar


def check_tasks(
    patterns: Sequence[str],
    data_dir: str | None,
    options: Mapping[str, Any],
    allow_missing: bool = False,
) -> None:
    """Raises UserError for a wrong name or unusable data, before a model is loaded for minutes."""
    for task in select(find_tasks(data_dir, **options), patterns, data_dir, allow_missing):
        task.check()


def evaluate_model(
    embedder: 'Embedder',
    reference: str,
    patterns: Sequence[str],
    data_dir: str | None,
    output: epath.Path,
    options: Mapping[str, Any],
    *,
    vectors: Path | None,
    keep_vectors: bool = False,
    allow_missing: bool = False,
    again: bool = False,
) -> dict[str, Any]:
    """Scores a model on tasks, and writes results.json and report/ into `output`.

    Args:
      embedder: the model, loaded.
      reference: the model reference that it was loaded from.
      patterns: names of tasks, globs or suites.
      data_dir: folder with the data of the tasks; None: those that need no data.
      output: directory of the results.
      options: options of tasks by name, see `registry.option_fields`.
      vectors: folder in which vectors are kept until their task is done; None: nowhere.
      keep_vectors: leave them there.
      allow_missing: run a suite without the tasks whose data are not there.
      again: measure what has been scored already again.

    Returns:
      The content of results.json.

    Raises:
      UserError: no such task, or its data cannot be used.
    """
    metrics = None
    if embedder.workdir:
        metrics = epath.Path(RunDir(Path(embedder.workdir)).metrics)
    else:  # a checkpoint of a run says when it was saved
        embedder.settings['weights'] = fingerprint_weights(*_directories(reference))
    context = Context(embedder.settings, epath.Path(RunDir(Path(output)).trec_runs))
    tasks = select(find_tasks(data_dir, context, **options), patterns, data_dir, allow_missing)
    return run_tasks(
        embed_with_kept_vectors(embedder, vectors, keep_vectors),
        embedder.model_name,
        embedder.settings,
        tasks,
        output,
        metrics,
        again,
    )


def embed_with_kept_vectors(embedder: 'Embedder', folder: Path | None, keep: bool) -> KeptVectors:
    """Returns the embedder on all processes, with a progress bar, and with its vectors kept in
    `folder` in case the program is killed.
    """
    from cpt_jax.search import across_hosts  # imports JAX

    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        return embedder(texts, cast('Side', side), PROGRESS[side])

    cache = EmbeddingCache(folder, embedder.window, keep)
    everywhere = across_hosts.embed_everywhere(embed)
    return cache.of_model(everywhere, embedder.model_name, embedder.settings)


def _directories(reference: str) -> list[Path]:
    from cpt_jax.origin.pretrained import directories_of  # imports JAX

    return directories_of(reference)
