"""Train, evaluate and export text and code embedding models in JAX."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpt_jax.embed.embedder import Embedder

__version__ = '0.1.0'
__all__ = ['evaluate', 'export', 'load_embedder', 'train']

# JAX is imported when a function is called, so that whoever imports cpt_jax can still choose a
# platform or a number of simulated devices.


def load_embedder(model: str, **options: Any) -> 'Embedder':
    """Loads a model for embedding, onto all devices.

    Args:
      model: a run's directory, `run@step`, `run@best:TASK`, or the directory of a pretrained model.
      options: pooling, dtype, max_tokens, representation, fsdp; see `cpt_jax.embed.load`.

    Returns:
      A function (texts, side) -> float32[n, D] of unit vectors; side is 'x' for queries and 'y' for
      what they look for.

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
    """Trains a run to its last step, from its latest checkpoint if it has one.

    Args:
      config: a file such as 'configs/quickstart.py', or what its `get_config()` returns.
      workdir: the run's directory, made if it is not there.

    Returns:
      0, or 42 if SIGTERM ended the run early; the same call goes on.

    Raises:
      cpt_jax.runtime.errors.UserError: the config or the data cannot be used, the directory holds
        another run, or the loss is no number any more.

    >>> from configs import small_pairs
    >>> config = small_pairs.get_config()
    >>> config.data.sources.pairs.path = 'pairs.jsonl'  # {"x": ..., "y": ...} on each line
    >>> config.train.batch_pairs, config.tokenizer.vocab_size = 32, 320  # a small file
    >>> config.train.steps, config.optimizer.warmup_steps = 2, 1
    >>> train(config, 'runs/mine')  # prints what it trains, and how it goes
    0
    """
    from cpt_jax.storage.local_path import local_path
    from cpt_jax.training.loop import train

    return train(_plain_config(config), local_path(workdir, 'workdir'))


def evaluate(
    model: str,
    tasks: str | Sequence[str],
    data_dir: str | Path | None = None,
    output: str | Path | None = None,
    *,
    again: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Scores a model on benchmarks, beside BM25 and random vectors.

    Args:
      model: a model reference, as for `load_embedder`.
      tasks: names, globs such as 'sts/*' or suites, with commas between them or as a list.
      data_dir: folder with the data of the tasks; None: those that need no data.
      output: where results.json and report/ go; None: the run's own directory, or ./results.
      again: measure tasks that have been scored already again.
      options: options of tasks (split, k, candidates, ...: the flags of launch/evaluate.py), and
        those of `load_embedder`.

    Returns:
      The content of results.json: {'model': ..., 'settings': ..., 'tasks': {name: {'main_score':
      ..., 'metrics': {...}, ...}}}; scores are fractions.

    Raises:
      cpt_jax.runtime.errors.UserError: there is no such model or task, or its data cannot be used.

    >>> results = evaluate('runs/mine', 'sts/STSBenchmark', 'data')
    >>> results['tasks']['sts/STSBenchmark']['counted']
    'pairs'
    """
    from etils import epath

    from cpt_jax.embed.load import load_embedder
    from cpt_jax.evals.model_evaluation import check_tasks, evaluate_model
    from cpt_jax.evals.registry import option_fields
    from cpt_jax.runs.run_dir import RunDir
    from cpt_jax.storage.local_path import local_path
    from cpt_jax.text.prompt_template import Representation

    local_path(output or '', 'output')
    of_tasks = {name: options.pop(name) for name in option_fields() if name in options}
    patterns = tasks.split(',') if isinstance(tasks, str) else tasks
    folder = str(data_dir) if data_dir else None
    check_tasks(patterns, folder, of_tasks)
    options.setdefault('representation', Representation(clean=True))  # as launch/evaluate.py
    embedder = load_embedder(model, **options)
    directory = Path(output or embedder.workdir or 'results')
    return evaluate_model(
        embedder,
        model,
        patterns,
        folder,
        epath.Path(directory),
        of_tasks,
        vectors=None if again else RunDir(directory).vectors,
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
    """Writes a run as a directory that transformers, sentence-transformers and others load.

    Args:
      model: a run's directory, or `run@step`.
      output: the directory to make; it must not be there yet.
      dtype: dtype of the weights: float32, bfloat16 or float16.
      shard_gb: most gigabytes of weights in a file.
      license_id: licence for the model card, such as apache-2.0.

    Returns:
      The largest difference between a number of the run's vectors and of those of a reload.

    Raises:
      cpt_jax.runtime.errors.UserError: there is no such run, no other library has its parts, or
        `output` is there.

    >>> export('runs/mine', 'exports/mine') < 1e-5
    True
    """
    from cpt_jax.exporting.directory import export
    from cpt_jax.storage.local_path import local_path

    written = export(
        model,
        local_path(output, 'output'),
        dtype=dtype,
        shard_bytes=int(shard_gb * 1e9),
        license_id=license_id,
    )
    return max(part.difference for part in written)


def _plain_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A config as plain values: of a file, of ml_collections, or as it is."""
    if isinstance(config, str | Path):
        from cpt_jax.runs.config_file import load_config

        return load_config(config)
    to_dict = getattr(config, 'to_dict', None)
    return to_dict() if to_dict else config
