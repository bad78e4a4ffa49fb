"""Programs that are killed at random moments, again and again, and what is left at their end."""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from cpt_jax.training.timing import TIMING_FIELDS
from fuzz.bit_flips import read_values
from fuzz.small_run import STEPS, TRAIN_FLAGS, finish, start_program

TEXTS = 3000


class Victim(NamedTuple):
    """A program to kill.

    Attributes:
      name: program in launch/.
      flags: its flags, with OUTPUT in place of its output directory.
      compare: returns how two output directories differ, '' if they do not.
      restarts: whether the same command goes on with the directory of a killed program.
    """

    name: str
    flags: tuple[str, ...]
    compare: Callable[[Path, Path], str]
    restarts: bool = True


class Killed(NamedTuple):
    """A program that was killed until it was allowed to end.

    Attributes:
      name: the program.
      kills: number of kills.
      difference: how its output differs from that of a program that was not killed; '' if it does
        not.
    """

    name: str
    kills: int
    difference: str


def count_kills(killed: Iterable[Killed]) -> dict[str, int]:
    """Returns the numbers for the JSON file of benchmarks/faults.py; prints each difference."""
    counts = {'kills': 0, 'differ': 0}
    for program in killed:
        counts['kills'] += program.kills
        if program.difference:
            counts['differ'] += 1
            print(f'{program.name} after {program.kills} kills: {program.difference}', flush=True)
    return counts


def kill_programs(random: Random, run: Path, folder: Path, kills: int) -> Iterator[Killed]:
    """Kills programs `kills` times in total, each up to four times before it may end.

    Args:
      random: source of the moments.
      run: a finished run of `small_run.train`.
      folder: an empty folder.
      kills: number of kills.
    """
    victims = _make_victims(run, folder)
    # With one name, because the card of an export has it as its title.
    expected = {victim.name: folder / 'undisturbed' / victim.name for victim in victims}
    seconds = {}
    for victim in victims:
        start = time.monotonic()
        finish(_start(victim, expected[victim.name], folder), folder)
        seconds[victim.name] = time.monotonic() - start
    done = 0
    for victim in itertools.cycle(victims):
        if done >= kills:
            return
        output = folder / 'killed' / victim.name
        count = 0
        for _ in range(min(random.randint(1, 4), kills - done)):
            program = _start(victim, output, folder)
            deadline = time.monotonic() + random.uniform(0.2, seconds[victim.name])
            while program.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            program.kill()
            count += program.wait() != 0
            if not victim.restarts and program.returncode == 0:
                break
        if victim.restarts or not output.exists():
            finish(_start(victim, output, folder), folder)
        difference = victim.compare(expected[victim.name], output)
        shutil.rmtree(output)
        done += count
        yield Killed(victim.name, count, difference)


def _start(victim: Victim, output: Path, folder: Path):
    flags = [flag.replace('OUTPUT', str(output)) for flag in victim.flags]
    return start_program(victim.name, *flags, cwd=folder)


def _make_victims(run: Path, folder: Path) -> list[Victim]:
    texts = folder / 'texts.jsonl'
    rows = ({'_id': str(i), 'text': f'read file {i} of the list'} for i in range(TEXTS))
    texts.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    embed = f'--model={run}', f'--input={texts}', '--output=OUTPUT', '--shard_size=250'
    evaluate = f'--model={run}', '--tasks=codesearch/python_source', '--output=OUTPUT'
    return [
        Victim('train', (*TRAIN_FLAGS, '--workdir=OUTPUT'), _compare_runs),
        Victim('embed', embed, _compare_vectors),
        Victim('evaluate', evaluate, _compare_results),
        Victim('export', (f'--model={run}', '--output=OUTPUT'), _compare_files, restarts=False),
    ]


def _compare_runs(a: Path, b: Path) -> str:
    if _read_rows(a) != _read_rows(b):
        return 'other metrics'
    first, second = (read_values(run, STEPS) for run in (a, b))
    differing = [name for name in first if not np.array_equal(first[name], second.get(name))]
    return f'other parameters: {", ".join(differing)}' if differing else ''


def _read_rows(run: Path) -> list[dict]:
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMING_FIELDS}
        for line in lines
    ]


def _compare_vectors(a: Path, b: Path) -> str:
    from cpt_jax.vectors import read_vectors

    first, second = read_vectors(a), read_vectors(b)
    if first.ids != second.ids:
        return 'other ids'
    largest = np.abs(np.concatenate(first.shards) - np.concatenate(second.shards)).max()
    # A program that goes on batches the rest of the texts in another way, which rounds differently.
    return '' if largest < 1e-6 else f'vectors differ by {largest}'


def _compare_results(a: Path, b: Path) -> str:
    first, second = (json.loads((path / 'results.json').read_text()) for path in (a, b))
    return '' if first == second else 'other results'


def _compare_files(a: Path, b: Path) -> str:
    first, second = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob('*')
            if path.is_file()
        }
        for folder in (a, b)
    )
    differing = [str(name) for name in first if first[name] != second.get(name)]
    return f'other files: {", ".join(differing)}' if differing or len(first) != len(second) else ''
