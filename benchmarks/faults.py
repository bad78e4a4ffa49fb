r"""Damages inputs and checkpoints, kills programs, and counts what is not noticed.

Example:
  python benchmarks/faults.py --seed 0 --inputs 1000 --json faults.json
  python benchmarks/faults.py --inputs 20 --flips 60 --kills 100 --json faults.json

--inputs reads random damaged inputs, and counts tracebacks and silently wrong results. There should
be none of either. The kinds are JSON lines and CSV files, compared with readers that
share no code with cpt_jax (benchmarks/fuzz/rows.py); BEIR folders, compared with such a reader and
with pytrec_eval; tiny model directories with damaged JSON, compared with transformers and
sentence-transformers on the same directory where they are installed (.venv-oracles); configs with
values of other types and absurd sizes; damaged records of a run. The seed determines all inputs.
The expected result is a good outcome, and so is a UserError on one line.

--flips trains a small run and flips single bits of its latest checkpoint: training and embedding
should use the checkpoint before (benchmarks/fuzz/bit_flips.py). --kills kills training, embedding,
evaluation and export at random moments: what they leave in the end should be what they leave
undisturbed (benchmarks/fuzz/kills.py). 100 kills take about a quarter of an hour.

The file of --json has `inputs`, `tracebacks` and `silent`, the counts of each kind in `kinds`, and
after --flips and --kills also `flips`, `flips_found`, `kills` and `differ`.
"""

import contextlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from absl import flags, logging
from tqdm import tqdm

from cpt_jax.cli.program import run_program
from fuzz.beir_folders import fuzz_folders
from fuzz.model_directories import fuzz_models
from fuzz.outcome import ERROR, OK, SILENT, TRACEBACK, Outcome
from fuzz.rows import fuzz_csv, fuzz_json_lines
from fuzz.run_files import fuzz_configs, fuzz_records

# Kind -> its function, and its share of the inputs.
KINDS: dict[str, tuple[Callable[..., Iterator[Outcome]], float]] = {
    'jsonl': (fuzz_json_lines, 0.25),
    'csv': (fuzz_csv, 0.25),
    'beir': (fuzz_folders, 0.15),
    'model': (fuzz_models, 0.15),
    'config': (fuzz_configs, 0.1),
    'record': (fuzz_records, 0.1),
}
SHOWN = 20  # number of bad outcomes that are printed in full


def main() -> int:
    outcomes = list(read_inputs(_SEED.value, _INPUTS.value))
    bad = [outcome for outcome in outcomes if outcome.what in (TRACEBACK, SILENT)]
    for outcome in bad[:SHOWN]:
        print(f'{outcome.kind}, {outcome.what}: {outcome.detail}')
    counts = count_outcomes(outcomes)
    print(f'{"kind":<8}{"inputs":>9}{OK:>9}{ERROR:>9}{"tracebacks":>13}{SILENT:>9}')
    for kind, row in {**counts['kinds'], 'all': counts}.items():
        numbers = f'{row["inputs"]:>9,}{row[OK]:>9,}{row[ERROR]:>9,}'
        print(f'{kind:<8}{numbers}{row["tracebacks"]:>13,}{row[SILENT]:>9,}')
    if _FLIPS.value or _KILLS.value:
        counts |= damage_runs(_SEED.value, _FLIPS.value, _KILLS.value)
    if _JSON.value:
        write_counts(Path(_JSON.value), counts)
    is_silent = counts.get('flips') != counts.get('flips_found') or counts.get('differ')
    return 1 if bad or is_silent else 0


def damage_runs(seed: int, flips: int, kills: int) -> dict[str, int]:
    """Flips bits of a checkpoint and kills programs; prints and returns the counts."""
    # Imports JAX, whose platform run_program chooses first.
    from fuzz.bit_flips import count_flips, flip_bits
    from fuzz.kills import count_kills, kill_programs
    from fuzz.small_run import train

    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ['CPT_JAX_CACHE'] = f'{folder}/cache'
        run = Path(folder, 'run')
        train(run)
        for name in ('flips', 'kills'):
            Path(folder, name).mkdir()
        if flips:
            outcomes = flip_bits(Random(seed), run, Path(folder, 'flips'), flips)
            counts |= count_flips(tqdm(outcomes, desc='flipping bits', disable=None))
            print(
                f'{counts["flips_found"]} of {counts["flips"]} flipped bits were noticed; '
                f'{counts["flips_unused"]} further ones are in no value'
            )
        if kills:
            killed = kill_programs(Random(seed), run, Path(folder, 'kills'), kills)
            counts |= count_kills(tqdm(killed, desc='killing programs', disable=None))
            print(f'{counts["kills"]} kills; {counts["differ"]} programs left something else')
    return counts


def read_inputs(seed: int, inputs: int) -> Iterator[Outcome]:
    """Yields the outcome of each input; what is printed meanwhile is dropped.

    Args:
      seed: seed of the inputs.
      inputs: number of inputs of all kinds.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ['CPT_JAX_CACHE'] = f'{folder}/cache'
        for kind, (fuzz, share) in KINDS.items():
            random = Random(f'{seed} {kind}')
            home = Path(folder) / kind
            home.mkdir()
            with contextlib.redirect_stdout(io.StringIO()), _hide_warnings():
                outcomes = list(fuzz(random, home, round(share * inputs)))
            yield from outcomes


@contextlib.contextmanager
def _hide_warnings() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    yield
    logging.set_verbosity(before)


def count_outcomes(outcomes: list[Outcome]) -> dict[str, Any]:
    """Returns the counts of all outcomes, and of each kind in `kinds`."""
    kinds = {
        kind: _count([outcome for outcome in outcomes if outcome.kind == kind]) for kind in KINDS
    }
    return _count(outcomes) | {'kinds': kinds}


def _count(outcomes: list[Outcome]) -> dict[str, int]:
    counts = Counter(outcome.what for outcome in outcomes)
    return {
        'inputs': len(outcomes),
        OK: counts[OK],
        ERROR: counts[ERROR],
        'tracebacks': counts[TRACEBACK],
        SILENT: counts[SILENT],
    }


def write_counts(path: Path, counts: dict[str, Any]) -> None:
    """Writes counts to a JSON file; keys that other parts of a measurement wrote stay in it."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(earlier | counts, indent=2) + '\n')


if __name__ == '__main__':
    # Flags are defined here because tests import this module.
    _SEED = flags.DEFINE_integer('seed', 0, 'Seed of the inputs.')
    _INPUTS = flags.DEFINE_integer('inputs', 1000, 'Number of inputs.', lower_bound=20)
    _FLIPS = flags.DEFINE_integer('flips', 0, 'Number of flipped bits.', lower_bound=0)
    _KILLS = flags.DEFINE_integer('kills', 0, 'Number of kills.', lower_bound=0)
    _JSON = flags.DEFINE_string('json', '', 'Also write the counts to this file.')
    run_program(main)
