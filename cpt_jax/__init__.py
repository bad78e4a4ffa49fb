"""Train, evaluate and export text and code embedding models in JAX."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder

__version__ = '0.1.0'
__all__ = ['evaluate', 'export', 'load_embedder', 'train']

# JAX is imported only when a function is called, so that after `import cpt_jax` you can still
# choose the platform or the number of simulated devices.


def load_embedder(model: str, **options: Any) -> 'Embedder':
    """Loads a model on all devices, for computing embeddings.

    Args:
      model: a run's directory, `run@step`, `run@best:TASK`, or the directory of a pretrained model.
      options: the optional arguments of `cpt_jax.embed.load.load_embedder`, such as pooling, dtype,
        max_tokens, representation, similarity, fsdp and dimensions.

    Returns:
      A function (texts, side) -> float32[n, D] of unit vectors. The side is 'x' for queries and 'y'
      for the texts to be found.

    Raises:
      cpt_jax.runtime.errors.UserError: there is no such model, or it cannot be read.

    >>> embed = load_embedder('runs/mine')
    >>> queries = embed(['sort a list of numbers', 'open a file'], 'x')
    >>> functions = embed(['def sort(items): ...', 'def read(path): ...'], 'y')
    >>> (queries @ functions.T).shape
    (2, 2)
    """
    from cpt_jax.embed.load import load_embedder

    return load_embedder(model, **options)


def train(config: Mapping[str, Any] | str | Path, workdir: str | Path) -> int:
    """Trains a run to its last step, and resumes from the latest checkpoint if there is one.

    Args:
      config: a file such as 'configs/quickstart.py', or the result of its `get_config()`.
      workdir: the run's directory; it is created if it does not exist.

    Returns:
      0 if the run is finished; 42 if SIGTERM stopped it early, and the same call resumes it.

    Raises:
      cpt_jax.runtime.errors.UserError: the config or the data cannot be used, the directory holds
        another run, or the loss is not finite.

    >>> from configs import small_pairs
    >>> config = small_pairs.get_config()
    >>> config.data.sources.pairs.path = 'pairs.jsonl'  # {"x": ..., "y": ...} on each line
    >>> config.train.batch_pairs, config.tokenizer.vocab_size = 32, 320  # a small file
    >>> config.train.steps, config.optimizer.warmup_steps = 2, 1
    >>> train(config, 'runs/mine')  # prints the settings and the progress
    0
    """
    from cpt_jax.storage.paths import make_path
    from cpt_jax.training.loop import train

    return train(_to_plain_config(config), make_path(workdir, 'workdir'))


def evaluate(
    model: str,
    tasks: str | Sequence[str],
    data_dir: str | Path | None = None,
    output: str | Path | None = None,
    *,
    again: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates a model on benchmark tasks, with BM25 and random vectors as baselines.

    Args:
      model: a model reference, as for `load_embedder`.
      tasks: names of tasks, globs such as 'sts/*' or suites, as a list or comma-separated.
      data_dir: folder with the data of the tasks, local or in a bucket (gs://...); default None,
        for tasks that need no data.
      output: folder for results.json and report/; default the run's directory, or ./results for a
        pretrained model.
      again: whether to evaluate tasks again that already have results.
      options: optional task options (split, k, candidates, ...; see the flags of
        launch/evaluate.py) and options of `load_embedder`.

    Returns:
      The content of results.json: {'model': ..., 'settings': ..., 'tasks': {name: {'main_score':
      ..., 'metrics': {...}, ...}}}. Scores are fractions, not percentages.

    Raises:
      cpt_jax.runtime.errors.UserError: there is no such model or task, or its data cannot be used.

    >>> results = evaluate('runs/mine', 'sts/STSBenchmark', 'data')
    >>> results['tasks']['sts/STSBenchmark']['counted']
    'pairs'
    """
    from etils import epath

    from cpt_jax.embed.load import load_embedder
    from cpt_jax.evals.model_evaluation import check_tasks, evaluate_model, find_vectors_folder
    from cpt_jax.evals.registry import fetch_data_dir, find_option_fields
    from cpt_jax.storage.paths import as_path, make_path
    from cpt_jax.text.prompt_template import Representation

    chosen = make_path(output, 'output') if output else None
    task_options = {name: options.pop(name) for name in find_option_fields() if name in options}
    patterns = tasks.split(',') if isinstance(tasks, str) else tasks
    folder = fetch_data_dir(str(data_dir) if data_dir else None, patterns)
    check_tasks(patterns, folder, task_options)
    options.setdefault('representation', Representation(clean=True))  # as in launch/evaluate.py
    embedder = load_embedder(model, **options)
    directory = chosen or as_path(embedder.workdir or 'results')
    return evaluate_model(
        embedder,
        model,
        patterns,
        folder,
        epath.Path(directory),
        task_options,
        vectors=None if again else find_vectors_folder(directory),
        again=again,
    )


def export(
    model: str,
    output: str | Path,
    *,
    dtype: str = 'float32',
    shard_gb: float = 5.0,
    license_id: str = 'unknown',
) -> float:
    """Exports a run to a directory that transformers, sentence-transformers and others can load.

    Args:
      model: a run's directory, or `run@step`.
      output: the directory to create, local or in a bucket (gs://...); it must not exist.
      dtype: dtype of the weights: float32, bfloat16 or float16.
      shard_gb: maximum size of a file of weights, in GB (1e9 bytes).
      license_id: licence in the model card, such as apache-2.0.

    Returns:
      The largest absolute difference between an element of the run's embeddings and of those of the
      reloaded export.

    Raises:
      cpt_jax.runtime.errors.UserError: there is no such run, its architecture does not exist in
        other libraries, or `output` exists.

    >>> export('runs/mine', 'exports/mine') < 1e-5
    True
    """
    from cpt_jax.exporting.directory import export
    from cpt_jax.storage.paths import make_path

    written = export(
        model,
        make_path(output, 'output'),
        dtype=dtype,
        shard_bytes=int(shard_gb * 1e9),
        license_id=license_id,
    )
    return max(part.difference for part in written)


def _to_plain_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """Returns a config as plain values, from a file, a ConfigDict or a mapping."""
    if isinstance(config, str | Path):
        from cpt_jax.runs.config_file import load_config

        return load_config(config)
    to_dict = getattr(config, 'to_dict', None)
    return to_dict() if to_dict else config
