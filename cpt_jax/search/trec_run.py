"""Run files in TREC's form: `query Q0 document rank score tag`, which trec_eval and pytrec_eval
read.
"""

from collections.abc import Iterator
from pathlib import Path

from etils import epath

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import replacing

Run = dict[str, dict[str, float]]  # query id -> document id -> score, the best first
TAG = 'cpt_jax'


def write_run(path: epath.Path, run: Run) -> None:
    """Writes the whole file or nothing, in UTF-8. Scores are read back as the same float32.

    Raises:
      UserError: an id is empty or holds a space.
    """
    for name in (name for query, row in run.items() for name in (query, *row)):
        if len(name.split()) != 1:
            raise UserError(
                f'{path}: the id {name!r} is empty or holds a space, which a run file cannot say: '
                f'leave --trec_runs out'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as file:
        file.writelines(line.encode('utf-8') for line in _lines(run))


def _lines(run: Run) -> Iterator[str]:
    for query, row in run.items():
        for rank, (document, score) in enumerate(row.items(), 1):
            yield f'{query} Q0 {document} {rank} {score:.9g} {TAG}\n'
