"""Which tasks there are, and which of them a user's words select."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals import bias, codesearch, retrieval, senteval, sts
from cpt_jax.evals.knn import TEMPLATE, WORDS
from cpt_jax.evals.task import Task

LAYOUTS = {
    'retrieval': 'retrieval/<folder>/ with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR)',
    'codesearch': 'codesearch/<name>.jsonl or .jsonl.gz (CodeSearchNet)',
    'sts': sts.LAYOUT,
    'bias': bias.LAYOUT,
    'probe': 'senteval/{MR,CR,SUBJ,MPQA,SST/binary,TREC,MRPC}/ (data/downstream of SentEval)',
    'knn': 'senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
    'zeroshot': 'senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
}


def find_tasks(
    data_dir: str | None,
    split: str = 'test',
    k: int = 100,
    candidates: int = 1000,
    code_text: str = 'raw',
    trained_on: Sequence[Mapping] = (),
    symmetric_side: str = 'x',
    probe_protocol: str = 'lbfgs',
    label_words: Sequence[str] = WORDS,
    label_template: str = TEMPLATE,
) -> dict[str, Task]:
    """Every task that can be run, by name.

    Args:
      data_dir: the folder with retrieval/, codesearch/, senteval/ and sent_bias_seat/, or some of them; None leaves what needs no data.
      split: of retrieval tasks (their qrels), STS-B and SICK-R: test, dev or train.
      k: documents kept for each query of a retrieval task.
      candidates: functions searched for each query of a code search task.
      code_text: 'raw' or 'tokens', see `code_pairs.file_pairs`.
      trained_on: see `code_pairs.python_source_pairs`.
      symmetric_side: 'x' or 'y', of all texts of tasks that have one kind of text.
      probe_protocol: 'lbfgs' or 'senteval', see `probe.PROTOCOLS`.
      label_words, label_template: see `knn.ZeroShot`.
    """
    folder = epath.Path(data_dir) if data_dir else None
    if folder and not folder.is_dir():
        raise UserError(f'--data_dir {data_dir}: no such directory')
    tasks = codesearch.find_tasks(folder, candidates, code_text, trained_on) | retrieval.find_tasks(folder, split, k)
    tasks |= sts.find_tasks(folder, symmetric_side, split)
    tasks |= bias.find_tasks(folder, symmetric_side)
    tasks |= senteval.find_tasks(folder, probe_protocol, label_words, label_template)
    return tasks


def select(tasks: dict[str, Task], patterns: Iterable[str], data_dir: str | None) -> list[Task]:
    """The tasks whose names are among `patterns`, which may be globs such as 'retrieval/*'; each once, in the order asked for.

    Raises UserError for a pattern that selects nothing; it lists what there is and where data are expected.
    """
    chosen: dict[str, Task] = {}
    for pattern in (pattern.strip() for pattern in patterns):
        found = {name: task for name, task in tasks.items() if fnmatchcase(name, pattern)}
        if not found:
            raise UserError(f'--tasks {pattern}: no such task; there are {", ".join(tasks)}; {_where(pattern, data_dir)}')
        chosen |= found
    if not chosen:
        raise UserError(f'--tasks is empty; there are {", ".join(tasks)}')
    return list(chosen.values())


def _where(pattern: str, data_dir: str | None) -> str:
    kind = pattern.split('/')[0]
    expected = LAYOUTS[kind] if kind in LAYOUTS else ' or '.join(LAYOUTS.values())
    return f'expected in --data_dir {data_dir}: {expected}' if data_dir else f'other data need --data_dir, a folder with {expected}'
