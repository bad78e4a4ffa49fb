"""The tasks on SentEval's classification data: linear probes, nearest neighbours and zero-shot classification."""

from collections.abc import Sequence

from etils import epath

from cpt_jax.evals.knn import TEMPLATE, WORDS, NearestNeighbours, ZeroShot
from cpt_jax.evals.probe import Probe
from cpt_jax.evals.senteval_data import LAYOUTS, Data
from cpt_jax.evals.task import Task


def find_tasks(
    data_dir: epath.Path | None, protocol: str = 'lbfgs', label_words: Sequence[str] = WORDS, label_template: str = TEMPLATE
) -> dict[str, Task]:
    """The tasks that can be run, by name: those whose folder lies in `data_dir`/senteval. Those on the same data share its vectors."""
    data = {name: Data(name, data_dir / 'senteval') for name in LAYOUTS} if data_dir else {}
    data = {name: one for name, one in data.items() if one.exists}
    tasks: list[Task] = [Probe(f'probe/{name}', one, protocol) for name, one in data.items()]
    if 'SST2' in data:
        tasks += [NearestNeighbours('knn/SST2', data['SST2']), ZeroShot('zeroshot/SST2', data['SST2'], label_words, label_template)]
    return {task.name: task for task in tasks}
