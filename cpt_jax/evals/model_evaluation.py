"""The evaluation of a model reference, shared by launch/evaluate.py and `cpt_jax.evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from etils import epath

from cpt_jax.evals.registry import find_tasks, select_tasks
from cpt_jax.evals.run import run_tasks
from cpt_jax.evals.store.embedding_cache import CachingEmbed, EmbeddingCache
from cpt_jax.evals.task import Context
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.cache import get_cache_folder
from cpt_jax.storage.paths import as_path, is_on_bucket
from cpt_jax.storage.writable import check_writable

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
    """Raises UserError for an unknown task or unusable data.

    It is called before the model is loaded, because loading may take minutes.
    """
    for task in select_tasks(find_tasks(data_dir, **options), patterns, data_dir, allow_missing):
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
    """Scores a model on tasks, and writes results.json and report/ to `output`.

    Args:
      embedder: the loaded model.
      reference: model reference that `embedder` was loaded from.
      patterns: names of tasks, globs or names of suites.
      data_dir: folder with the data of the tasks; None allows only tasks that need no data.
      output: directory of the results.
      options: task options by name, see `registry.find_option_fields`.
      vectors: folder in which embeddings are cached until their task is done; None disables the
        cache.
      keep_vectors: whether to keep the cached embeddings.
      allow_missing: whether to run a suite without the tasks whose data are missing.
      again: whether to run tasks that already have a score.

    Returns:
      The content of results.json.

    Raises:
      UserError: there is no such task, its data cannot be used, or `output` cannot be written.
    """
    from cpt_jax.embed.load import add_weights_fingerprint  # imports JAX

    check_writable(as_path(output), '--output')
    metrics = None
    if embedder.workdir:
        metrics = epath.Path(RunDir(as_path(embedder.workdir)).metrics)
    add_weights_fingerprint(embedder, reference)
    context = Context(embedder.settings, epath.Path(RunDir(as_path(output)).trec_runs))
    tasks = select_tasks(
        find_tasks(data_dir, context, **options), patterns, data_dir, allow_missing
    )
    return run_tasks(
        make_caching_embed(embedder, vectors, keep_vectors),
        embedder.model_name,
        embedder.settings,
        tasks,
        output,
        metrics,
        again,
    )


def find_vectors_folder(output: Path) -> Path:
    """Returns the folder for the vectors of an unfinished task, by the directory of the results.

    Vectors are memory-mapped, so those of results in a bucket are in the cache of this machine.
    """
    if is_on_bucket(output):
        return get_cache_folder() / 'vectors' / str(output).replace('/', '_')
    return RunDir(output).vectors


def make_caching_embed(embedder: 'Embedder', folder: Path | None, keep: bool) -> CachingEmbed:
    """Returns an embedding function that runs on all processes, shows a progress bar and caches its
    results.

    Args:
      embedder: the loaded model.
      folder: folder of the cache; None disables the cache.
      keep: whether to keep the embeddings of a task when it is done.
    """
    from cpt_jax.search import across_hosts  # imports JAX

    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        return embedder(texts, cast('Side', side), PROGRESS[side])

    cache = EmbeddingCache(folder, embedder.window, keep)
    everywhere = across_hosts.embed_everywhere(embed)
    return cache.wrap(everywhere, embedder.model_name, embedder.settings)
