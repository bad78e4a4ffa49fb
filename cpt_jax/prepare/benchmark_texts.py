"""The texts of the test sets that the evaluation program finds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cpt_jax.benchmark_data.beir import load_collection
from cpt_jax.benchmark_data.senteval import SentEvalSet
from cpt_jax.data.files import InputFile
from cpt_jax.evals.registry import KINDS, fetch_data_dir, find_tasks
from cpt_jax.evals.task import Task
from cpt_jax.evals.tasks.bias import AssociationTest, read_test
from cpt_jax.evals.tasks.codesearch import CodeSearch
from cpt_jax.evals.tasks.knn import NearestNeighbours
from cpt_jax.evals.tasks.open_qa import OpenQa, read_questions
from cpt_jax.evals.tasks.probe import Probe
from cpt_jax.evals.tasks.retrieval import Retrieval
from cpt_jax.evals.tasks.sts import Similarity
from cpt_jax.evals.tasks.zeroshot import ZeroShot
from cpt_jax.prepare.inputs import list_files
from cpt_jax.runtime.errors import UserError


def find_test_sets(data_dir: str) -> dict[str, Task]:
    """Returns the tasks whose data are in a data directory, by name.

    Args:
      data_dir: folder with retrieval/, senteval/ and so on, local or in a bucket.

    Raises:
      UserError: it cannot be read, or has no test set.
    """
    without_data = find_tasks(None)
    found = find_tasks(fetch_data_dir(data_dir, ['*']))
    tasks = {name: task for name, task in found.items() if name not in without_data}
    if not tasks:
        raise UserError(
            f'--data_dir {data_dir}: has no test set: give the folder that launch/evaluate.py reads'
        )
    return tasks


def list_test_files(data_dir: str) -> list[InputFile]:
    """Returns the files of the test sets in a data directory.

    Raises:
      UserError: see `find_test_sets`.
    """
    find_test_sets(data_dir)
    root = fetch_data_dir(data_dir, ['*'])
    assert root  # it is not None, because data_dir is not
    # Other files of the directory, such as this program's output, are not read.
    return list_files(Path(root), {kind.folder.split('/')[0] for kind in KINDS})


def iterate_test_texts(task: Task, documents: bool = True) -> Iterator[str] | None:
    """Returns the texts of a task whose answers a model must not have seen; None if the kind of
    task is unknown.

    These are queries, questions, test sentences, and the documents that are relevant to a query. Of
    a collection, all other documents are left out, and so are training sentences.

    Args:
      task: a task.
      documents: whether to yield relevant documents and functions too.

    Raises:
      UserError: its data cannot be used.
    """
    found = next((read for kind, read in _READERS.items() if isinstance(task, kind)), None)
    return found(task, documents) if found else None


def _iterate_similarity(task: Any, documents: bool) -> Iterator[str]:
    del documents
    for pairs in task.load():
        for texts in pairs.texts:
            yield from texts


def _iterate_retrieval(task: Any, documents: bool) -> Iterator[str]:
    collection = load_collection(task.folder, task.split)
    yield from collection.queries
    if not documents:
        return
    relevant = {
        name
        for grades in collection.qrels.values()
        for name, grade in grades.items()
        if grade > 0 and name in collection.positions
    }
    positions = {collection.positions[name] for name in relevant}
    yield from collection.documents.load_texts_at(positions).values()


def _iterate_labelled(task: Any, documents: bool) -> Iterator[str]:
    del documents
    data: SentEvalSet = task.data
    part = 'test' if 'test' in data.layout.parts else 'all'
    for texts in data.read_part(part).texts:
        yield from texts


def _iterate_code(task: Any, documents: bool) -> Iterator[str]:
    pairs = task.load()
    yield from pairs.queries
    if documents:
        yield from pairs.codes


def _iterate_questions(task: Any, documents: bool) -> Iterator[str]:
    del documents
    questions, _ = read_questions(task.questions)
    yield from questions


def _iterate_bias(task: Any, documents: bool) -> Iterator[str]:
    del documents
    for concept in read_test(task.path).values():
        yield from concept.texts


_READERS: dict[type, Callable[[Any, bool], Iterator[str]]] = {
    Similarity: _iterate_similarity,
    Retrieval: _iterate_retrieval,
    Probe: _iterate_labelled,
    NearestNeighbours: _iterate_labelled,
    ZeroShot: _iterate_labelled,
    CodeSearch: _iterate_code,
    OpenQa: _iterate_questions,
    AssociationTest: _iterate_bias,
}
