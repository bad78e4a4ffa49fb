"""The search for demonstrations.

A task is scored with each candidate in front of all texts, and the candidates are ranked.
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
from cpt_jax.storage.json_rows import append_row, read_complete_rows
from cpt_jax.storage.locks import LOCKS_FOLDER, try_lock
from cpt_jax.text.prompt_template import Prompt

ROWS = 'demonstrations.jsonl'
TABLE = 'demonstrations.md'
BEST = 'best.json'
NOTE = (
    'Chosen with the labels of a dev set: its scores are not comparable with those of methods '
    'that use no labels.'
)
NO_DEMONSTRATION = Candidate((), where='none')  # no demonstration: the baseline of all candidates
SECONDS_BETWEEN_LINES = 30  # interval of progress lines if the output is not a terminal
_KEYS = {'number', 'demonstrations', 'template', 'main_score', 'main_metric', 'seconds'}

Row = dict


def make_candidate_prompt(candidate: Candidate, base: Prompt) -> Prompt:
    """Returns `base` with a candidate's demonstrations, and with its template if it has one."""
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
    """Scores the texts without a demonstration, and then with each candidate.

    Candidates that have a row in `output` already are not measured again.

    Args:
      read: function from a prompt to the embedding function of the model with this prompt.
      base: the model's prompt without demonstrations.
      task: task whose main score ranks the candidates.
      about: everything else that a score depends on. It is an error if `output` has rows of a
        search with another `about`.
      output: directory, created if missing. A row is appended to its demonstrations.jsonl after
        each candidate.

    Returns:
      The row without a demonstration, then the rows of `candidates` in the given order, then rows
      of other candidates that `output` already has. `number` is the index in this list.

    Raises:
      UserError: `output` has the rows of another search, another program is using it, or a
        candidate is too long for the model.
    """
    about = json.loads(json.dumps(about))  # comparable with the content of the file
    output.mkdir(parents=True, exist_ok=True)
    with try_lock(output / LOCKS_FOLDER / 'demonstrations') as mine:
        if not mine:
            raise UserError(
                f'--output {output}: another program is searching there; wait for it or give '
                f'another directory'
            )
        path = output / ROWS
        wanted = [NO_DEMONSTRATION, *candidates]
        found = _read_earlier_rows(path, about)
        for candidate in wanted:
            _check_length(read, candidate, base)
        missing = [
            number for number, candidate in enumerate(wanted) if _make_key(candidate) not in found
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
            row = {'number': number, **_measure_candidate(read, wanted[number], base, task)}
            append_row(path, row)
            found[_make_key(wanted[number])] = row
            bar.set_postfix_str(_format_best(found))
            bar.update()
            if bar.disable and time.monotonic() >= next_line:  # not a terminal
                next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                tqdm.write(f'{done:,} of {len(wanted):,}: {_format_best(found)}')
        bar.close()
    keys = [*map(_make_key, wanted)]
    # Rows of earlier searches in this directory take part in the ranking.
    keys += [key for key in found if key not in set(keys)]
    return [found[key] | {'number': number} for number, key in enumerate(keys)]


def _format_best(found: Mapping[str, Row]) -> str:
    best = max(row['main_score'] for row in found.values())
    return f'best {100 * best:.2f}'


def _measure_candidate(
    read: Callable[[Prompt], Embed], candidate: Candidate, base: Prompt, task: Task
) -> Row:
    start = time.perf_counter()
    result = task.run(read(make_candidate_prompt(candidate, base)))
    return {
        'demonstrations': [list(pair) for pair in candidate.demonstrations],
        'template': candidate.template,
        'main_score': result.main_score,
        'main_metric': result.metric,
        'n': result.n,
        'seconds': round(time.perf_counter() - start, 3),
    }


def _check_length(read: Callable[[Prompt], Embed], candidate: Candidate, base: Prompt) -> None:
    """Raises UserError if a candidate is too long for the model.

    It is called for all candidates before the first one is measured, so that a long search does not
    fail at its end.
    """
    try:
        read(make_candidate_prompt(candidate, base))
    except UserError as error:
        raise UserError(f'{candidate.where}: {error}') from None


def _make_key(candidate: Candidate) -> str:
    return repr((candidate.demonstrations, candidate.template))


def _read_earlier_rows(path: Path, about: Mapping[str, object]) -> dict[str, Row]:
    """Reads the rows of an earlier search, by candidate key.

    If the file has no complete line, it is started again.
    """
    rows = list(read_complete_rows(path))
    if not rows:
        append_row(path, {'search': about})
        return {}
    (where, first), *rest = rows
    if not isinstance(first, dict) or not isinstance(first.get('search'), dict):
        raise UserError(
            f'{where}: this is not the first line of a search for demonstrations: remove the file '
            f'or give another --output'
        )
    differing = [key for key in about if first['search'].get(key) != about[key]]
    if differing:
        raise UserError(
            f'{path}: belongs to another search, with different {", ".join(differing)}: give '
            f'another --output, or remove the file'
        )
    found: dict[str, Row] = {}
    for where, row in rest:
        if not isinstance(row, dict) or _KEYS - row.keys():
            raise UserError(
                f'{where}: not a row of a search for demonstrations: fix or remove the line'
            )
        demonstrations = tuple(map(tuple, row['demonstrations']))
        found[_make_key(Candidate(demonstrations, row['template']))] = row
    return found


def rank_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the candidates, best first. Ties are broken by `number`."""
    return sorted(rows[1:], key=lambda row: (-row['main_score'], row['number']))


def count_helpful(rows: Sequence[Row]) -> int:
    """Returns the number of candidates that score higher than no demonstration."""
    return sum(row['main_score'] > rows[0]['main_score'] for row in rows[1:])


def format_ranking(rows: Sequence[Row], most: int = 20) -> str:
    """Returns the table for the terminal: no demonstration, and the `most` best candidates."""
    lines = [
        f'{"":>4}  {"score":>6}  {"change":>7}  {"word":<20}  sentence',
        f'{"-":>4}  {_format_score(rows[0])}  {"":>7}  {"(none)":<20}',
    ]
    for rank, row in enumerate(rank_rows(rows)[:most], 1):
        words, sentences = _format_candidate(row)
        lines.append(
            f'{rank:>4}  {_format_score(row)}  {_format_change(row, rows):>7}  {words:<20}  '
            f'{sentences[:90]}'.rstrip()
        )
    return '\n'.join(lines)


def format_page(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    """Returns a Markdown page with all candidates."""

    def escape_pipes(text):
        return text.replace('|', '\\|')

    lines = [
        f'# Demonstrations for {about["model"]}',
        f'{about["task"]}, {about["split"]}, {rows[0]["main_metric"]} x100, {rows[0]["n"]:,} pairs.'
        f' {count_helpful(rows):,} of {len(rows) - 1:,} candidates help. {NOTE}',
        '| | score | change | word | sentence |\n|--:|--:|--:|---|---|\n'
        + f'| | {_format_score(rows[0]).strip()} | | (none) | |',
    ]
    table = []
    for rank, row in enumerate(rank_rows(rows), 1):
        words, sentences = _format_candidate(row)
        score = _format_score(row).strip()
        change = _format_change(row, rows)
        table.append(
            f'| {rank} | {score} | {change} | {escape_pipes(words)} | {escape_pipes(sentences)} |'
        )
    return '\n\n'.join(lines) + '\n' + '\n'.join(table) + '\n'


def _format_score(row: Row) -> str:
    return f'{100 * row["main_score"]:6.2f}'


def _format_change(row: Row, rows: Sequence[Row]) -> str:
    return f'{100 * (row["main_score"] - rows[0]["main_score"]):+.2f}'


def _format_candidate(row: Row) -> tuple[str, str]:
    """Returns (words, sentences) of a candidate, joined by ' / '.

    If the candidate has its own template, returns ('', template).
    """
    if row['template']:
        return '', row['template']
    words = [word for _, word in row['demonstrations']]
    sentences = [sentence for sentence, _ in row['demonstrations']]
    return ' / '.join(words), ' / '.join(sentences)
