"""Run files in TREC format, which trec_eval and pytrec_eval read.

A line is `query Q0 document rank score tag`.
"""

from collections.abc import Iterator

from etils import epath

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.paths import as_path

Run = dict[str, dict[str, float]]  # query id -> document id -> score, best first
TAG = 'cpt_jax'


def write_run(path: epath.Path, run: Run) -> None:
    """Writes a run file in UTF-8, atomically. Scores can be read back as the same float32.

    Raises:
      UserError: an id is empty or contains a space.
    """
    for name in (name for query, row in run.items() for name in (query, *row)):
        if len(name.split()) != 1:
            raise UserError(
                f'{path}: the id {name!r} is empty or contains a space, which a run file cannot '
                f'represent: remove --trec_runs'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(as_path(path), ''.join(_format_lines(run)))


def _format_lines(run: Run) -> Iterator[str]:
    for query, row in run.items():
        for rank, (document, score) in enumerate(row.items(), 1):
            yield f'{query} Q0 {document} {rank} {score:.9g} {TAG}\n'
