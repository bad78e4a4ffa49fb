"""What a task's scores depend on besides the model: the choices of the user, and the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from cpt_jax.evals.embedding_cache import digest
from cpt_jax.evals.rows import file_fingerprint
from cpt_jax.evals.senteval_data import LAYOUTS
from cpt_jax.evals.task import Task

# Kind of task -> the choices that its scores depend on, and that which has it write more than scores.
CHOICES = {
    'retrieval': ('split', 'k', 'index', 'baselines', 'trec_runs'),
    'openqa': ('k', 'index', 'baselines', 'trec_runs'),
    'codesearch': ('candidates', 'code_text', 'code_direction'),
    'sts': ('symmetric_side', 'split'),
    'bias': ('symmetric_side',),
    'probe': ('probe_protocol',),
    'knn': (),
    'zeroshot': ('label_words', 'label_template'),
}


def fingerprints(tasks: Sequence[Task], choices: Mapping[str, object], data_dir: str | None) -> dict[str, str]:
    """Name -> 32 hex digits, of the tasks of the kinds in `CHOICES`. It reads all their data, in seconds a gigabyte."""
    return {task.name: _fingerprint(task.name, choices, data_dir) for task in tasks if task.name.split('/')[0] in CHOICES}


def weights_fingerprint(*directories: Path) -> str:
    """Of the files of a pretrained model, its settings among them: another one may take its place under the same name."""
    kinds = 'safetensors', 'bin', 'json'
    paths = [path for folder in directories for path in sorted(folder.rglob('*')) if path.suffix[1:] in kinds and path.is_file()]
    return file_fingerprint(*map(epath.Path, paths))


def _fingerprint(name: str, choices: Mapping[str, object], data_dir: str | None) -> str:
    kind = name.split('/')[0]
    chosen = {choice: choices[choice] for choice in CHOICES[kind]}
    return digest([name, chosen, _python_source() if name == 'codesearch/python_source' else _files(name, choices, Path(data_dir or '.'))])


def _python_source() -> str:
    from cpt_jax.data.python_source import PythonSource

    return PythonSource(split='heldout').fingerprint


def _files(name: str, choices: Mapping[str, object], data_dir: Path) -> str:
    """Of the task's files, or of those and some more; what is missing is told when the task is run."""
    kind, _, rest = name.partition('/')
    senteval = data_dir / 'senteval'
    paths = {
        'retrieval': lambda: [*(data_dir / name).glob('*'), *(data_dir / name / 'qrels').glob('*')],
        'openqa': lambda: [*(data_dir / name).glob('*'), *(data_dir / kind).glob('*')],
        'codesearch': lambda: (data_dir / kind).glob(f'{rest}*'),
        'sts': lambda: (senteval / 'STS').glob(f'{rest}*/*') if rest != 'SICK-R' else (senteval / 'SICK').glob('*'),
        'bias': lambda: [data_dir / 'sent_bias_seat/tests' / f'{rest}.jsonl'],
    }.get(kind, lambda: (senteval / LAYOUTS[rest].folder).glob('*'))
    return file_fingerprint(*(epath.Path(path) for path in sorted(paths()) if path.is_file()))
