"""The search for demonstrations: each candidate alone before all texts of a task, in the order of
its scores.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from cpt_jax.embed.function import Embed
from cpt_jax.evals.demonstrations.candidates import Candidate
from cpt_jax.evals.task import Task
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_rows import append_row, read_whole_rows
from cpt_jax.storage.locks import CLAIMS, claimed
from cpt_jax.text.prompt_template import Prompt

ROWS, TABLE, BEST = 'demonstrations.jsonl', 'demonstrations.md', 'best.json'
NOTE = (
    'Chosen by the labels of a dev set: scores with it do not compare with those of methods that '
    'see no labels.'
)
NONE = Candidate((), where='none')  # without a demonstration: what the others are compared with
SECONDS_BETWEEN_LINES = 30  # where the output is no terminal
_KEYS = {'number', 'demonstrations', 'template', 'main_score', 'main_metric', 'seconds'}

Row = dict


def prompt_of(candidate: Candidate, base: Prompt) -> Prompt:
    """What texts stand in behind a candidate."""
    return dataclasses.replace(
        base, template=candidate.template or base.template, demonstrations=candidate.demonstrations
    )


def search_demonstrations(
    read: Callable[[Prompt], Embed],
    base: Prompt,
    candidates: Sequence[Candidate],
    task: Task,
    about: Mapping[str, object],
    output: Path,
) -> list[Row]:
    """Scores all candidates, and first the texts without one; rows that `output` has are not
    measured again.

    Args:
      read: gives the model as it reads texts in a prompt.
      base: the model's prompt without demonstrations.
      task: whose main score counts.
      about: all else that a score depends on. Rows of a search with another one are not mixed with
        these.
      output: a directory, made where it is missing; a row is added to its demonstrations.jsonl
        after each candidate.

    Returns:
      The row without one first, then those of the candidates in the order given, then those that
        `output` had of others: the best is the
      best of all. `number` is the place.

    Raises:
      UserError: the rows there are of another search, or another program is at it; or a candidate
        is too long for the model.
    """
    about = json.loads(json.dumps(about))  # as it comes back from the file
    output.mkdir(parents=True, exist_ok=True)
    with claimed(output / CLAIMS / 'demonstrations') as mine:
        if not mine:
            raise UserError(
                f'--output {output}: another program searches there; wait for it or give another '
                f'directory'
            )
        path, wanted = output / ROWS, [NONE, *candidates]
        found = _earlier(path, about)
        for candidate in wanted:
            _check_length(read, candidate, base)
        missing = [
            number for number, candidate in enumerate(wanted) if _name(candidate) not in found
        ]
        bar = tqdm(
            total=len(wanted),
            initial=len(wanted) - len(missing),
            desc='demonstrations',
            unit='candidate',
            disable=None,
        )
        next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        for done, number in enumerate(missing, len(wanted) - len(missing) + 1):
            row = {'number': number, **_measured(read, wanted[number], base, task)}
            append_row(path, row)
            found[_name(wanted[number])] = row
            bar.set_postfix_str(_best(found))
            bar.update()
            if bar.disable and time.monotonic() >= next_line:  # no terminal
                next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                tqdm.write(f'{done:,} of {len(wanted):,}: {_best(found)}')
        bar.close()
    names = [*map(_name, wanted)]
    # Of earlier searches: the best is that of all.
    names += [name for name in found if name not in set(names)]
    return [found[name] | {'number': number} for number, name in enumerate(names)]


def _best(found: Mapping[str, Row]) -> str:
    return f'best {100 * max(row["main_score"] for row in found.values()):.2f}'


def _measured(
    read: Callable[[Prompt], Embed], candidate: Candidate, base: Prompt, task: Task
) -> Row:
    start = time.perf_counter()
    result = task.run(read(prompt_of(candidate, base)))
    return {
        'demonstrations': [list(pair) for pair in candidate.demonstrations],
        'template': candidate.template,
        'main_score': result.main_score,
        'main_metric': result.metric,
        'n': result.n,
        'seconds': round(time.perf_counter() - start, 3),
    }


def _check_length(read: Callable[[Prompt], Embed], candidate: Candidate, base: Prompt) -> None:
    """Before the first is measured: the search need not stop at the last one."""
    try:
        read(prompt_of(candidate, base))
    except UserError as error:
        raise UserError(f'{candidate.where}: {error}') from None


def _name(candidate: Candidate) -> str:
    return repr((candidate.demonstrations, candidate.template))


def _earlier(path: Path, about: Mapping[str, object]) -> dict[str, Row]:
    """The rows of an earlier start, by candidate; a file without a whole line is begun anew."""
    rows = list(read_whole_rows(path))
    if not rows:
        append_row(path, {'search': about})
        return {}
    (where, first), *rest = rows
    if not isinstance(first, dict) or not isinstance(first.get('search'), dict):
        raise UserError(
            f'{where}: not the first line of a search for demonstrations: remove the file or give '
            f'another --output'
        )
    differing = [key for key in about if first['search'].get(key) != about[key]]
    if differing:
        raise UserError(
            f'{path}: is of another search, with other {", ".join(differing)}: give another '
            f'--output, or remove the file'
        )
    found: dict[str, Row] = {}
    for where, row in rest:
        if not isinstance(row, dict) or _KEYS - row.keys():
            raise UserError(
                f'{where}: not a row of a search for demonstrations: mend or remove the line'
            )
        found[repr((tuple(map(tuple, row['demonstrations'])), row['template']))] = row
    return found


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The candidates, best first; of equal scores the one given first."""
    return sorted(rows[1:], key=lambda row: (-row['main_score'], row['number']))


def helping(rows: Sequence[Row]) -> int:
    """How many candidates score more than none does."""
    return sum(row['main_score'] > rows[0]['main_score'] for row in rows[1:])


def format_ranking(rows: Sequence[Row], most: int = 20) -> str:
    """For the terminal: the best, and the texts without a demonstration."""
    lines = [
        f'{"":>4}  {"score":>6}  {"change":>7}  {"word":<20}  sentence',
        f'{"-":>4}  {_score(rows[0])}  {"":>7}  {"(none)":<20}',
    ]
    for place, row in enumerate(ranked(rows)[:most], 1):
        words, sentences = _shown(row)
        lines.append(
            f'{place:>4}  {_score(row)}  {_change(row, rows):>7}  {words:<20}  '
            f'{sentences[:90]}'.rstrip()
        )
    return '\n'.join(lines)


def format_page(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    """All of them, as Markdown."""

    def cell(text):
        return text.replace('|', '\\|')

    lines = [
        f'# Demonstrations for {about["model"]}',
        f'{about["task"]}, {about["split"]}, {rows[0]["main_metric"]} x100, {rows[0]["n"]:,} pairs.'
        f' {helping(rows):,} of {len(rows) - 1:,} candidates help. {NOTE}',
        '| | score | change | word | sentence |\n|--:|--:|--:|---|---|\n'
        + f'| | {_score(rows[0]).strip()} | | (none) | |',
    ]
    table = '\n'.join(
        f'| {place} | {_score(row).strip()} | {_change(row, rows)} | {cell(words)} | '
        f'{cell(sentences)} |'
        for place, row in enumerate(ranked(rows), 1)
        for words, sentences in [_shown(row)]
    )
    return '\n\n'.join(lines) + '\n' + table + '\n'


def _score(row: Row) -> str:
    return f'{100 * row["main_score"]:6.2f}'


def _change(row: Row, rows: Sequence[Row]) -> str:
    return f'{100 * (row["main_score"] - rows[0]["main_score"]):+.2f}'


def _shown(row: Row) -> tuple[str, str]:
    """Words and sentences of a candidate; a whole template stands for itself."""
    if row['template']:
        return '', row['template']
    pairs = row['demonstrations']
    words, sentences = ([pair[i] for pair in pairs] for i in (1, 0))
    return ' / '.join(words), ' / '.join(sentences)
