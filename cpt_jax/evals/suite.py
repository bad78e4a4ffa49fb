"""Which tasks there are, and which of them a user's words select."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from etils import epath

from cpt_jax.errors import UserError
from cpt_jax.evals import bias, codesearch, open_qa, retrieval, senteval, sts
from cpt_jax.evals.knn import TEMPLATE, WORDS
from cpt_jax.evals.searcher import EXACT, Searcher
from cpt_jax.evals.suites import SUITES, expanded
from cpt_jax.evals.task import Task

LAYOUTS = {
    'retrieval': 'retrieval/<folder>/ with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR)',
    'openqa': open_qa.LAYOUT,
    'codesearch': 'codesearch/<name>.jsonl or .jsonl.gz (CodeSearchNet)',
    'sts': sts.LAYOUT,
    'bias': bias.LAYOUT,
    'probe': 'senteval/{MR,CR,SUBJ,MPQA,SST/binary,TREC,MRPC}/ (data/downstream of SentEval)',
    'knn': 'senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
    'zeroshot': 'senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
}
FOLDERS = (
    'retrieval/<folder>/ (BEIR), openqa/<name>/, codesearch/ (CodeSearchNet), senteval/ (its data/downstream), sent_bias_seat/tests/, or'
    ' some of them'
)


def find_tasks(
    data_dir: str | None,
    split: str = '',
    k: int = 100,
    candidates: int = 1000,
    code_text: str = 'raw',
    trained_on: Sequence[Mapping] = (),
    symmetric_side: str = 'x',
    probe_protocol: str = 'lbfgs',
    label_words: Sequence[str] = WORDS,
    label_template: str = TEMPLATE,
    code_direction: str = 'text_to_code',
    searcher: Searcher = EXACT,
    runs: epath.Path | None = None,
) -> dict[str, Task]:
    """Every task that can be run, by name.

    Args:
      data_dir: the folder with retrieval/, codesearch/, senteval/ and sent_bias_seat/, or some of them; None leaves what needs no data.
      split: of retrieval tasks (their qrels), STS-B and SICK-R: test, dev or train; '': dev of msmarco, test of the others.
      k: documents kept for each query of a retrieval task or an openqa one.
      candidates: functions searched for each query of a code search task; 0: all.
      code_text: 'raw' or 'tokens', see `code_pairs.file_pairs`.
      trained_on: see `code_pairs.python_source_pairs`.
      symmetric_side: 'x' or 'y', of all texts of tasks that have one kind of text.
      probe_protocol: 'lbfgs' or 'senteval', see `probe.PROTOCOLS`.
      label_words, label_template: see `knn.ZeroShot`.
      code_direction: of code search: 'text_to_code', 'code_to_text' or 'both'.
      searcher: what looks for documents in retrieval and openqa tasks.
      runs: where their rankings are written as run files; None: nowhere.
    """
    folder = epath.Path(data_dir) if data_dir else None
    if folder and not folder.is_dir():
        raise UserError(f'--data_dir {data_dir}: no such directory; expected there: {FOLDERS}')
    tasks: dict[str, Task] = {**codesearch.find_tasks(folder, candidates, code_text, trained_on, code_direction)}
    tasks |= retrieval.find_tasks(folder, split, k, searcher, runs)
    tasks |= open_qa.find_tasks(folder, k, searcher, runs)
    tasks |= sts.find_tasks(folder, symmetric_side, split or 'test')
    tasks |= bias.find_tasks(folder, symmetric_side)
    tasks |= senteval.find_tasks(folder, probe_protocol, label_words, label_template)
    return tasks


def select(tasks: dict[str, Task], patterns: Iterable[str], data_dir: str | None, allow_missing: bool = False) -> list[Task]:
    """The tasks whose names are among `patterns`, which may be globs such as 'retrieval/*' or suites; each once, in the order asked for.

    Raises UserError for a pattern that selects nothing; it lists what there is and where data are expected.
    """
    chosen: dict[str, Task] = {}
    for pattern in expanded(patterns, tasks, data_dir, allow_missing):
        found = {name: task for name, task in tasks.items() if fnmatchcase(name, pattern)}
        if not found:
            raise UserError(
                f'--tasks {pattern}: no such task; there are {_like(pattern, tasks)}; {_where(pattern, data_dir)};'
                f' suites: {", ".join(SUITES)}'
            )
        chosen |= found
    if not chosen:
        raise UserError(f'--tasks is empty; there are {_like("", tasks)}')
    return list(chosen.values())


def _like(pattern: str, tasks: Iterable[str]) -> str:
    """The names of the tasks of the pattern's kind; where there are none, what kinds there are."""
    kind = pattern.split('/')[0]
    return ', '.join([name for name in tasks if name.split('/')[0] == kind] or dict.fromkeys(f'{name.split("/")[0]}/*' for name in tasks))


def _where(pattern: str, data_dir: str | None) -> str:
    kind = pattern.split('/')[0]
    expected = LAYOUTS.get(kind, FOLDERS)
    return f'expected in --data_dir {data_dir}: {expected}' if data_dir else f'other data need --data_dir, a folder with {expected}'
