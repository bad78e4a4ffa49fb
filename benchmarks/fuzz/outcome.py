"""What the code did with an input."""

import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

OK, ERROR, TRACEBACK, SILENT = 'ok', 'error', 'traceback', 'silent'


class Outcome(NamedTuple):
    """What the code did with an input.

    Attributes:
      kind: kind of the input, such as 'csv'.
      what: OK (the expected result), ERROR (a UserError on one line), TRACEBACK (any other
        exception) or SILENT (another result than expected, without an error).
      detail: description for TRACEBACK and SILENT.
    """

    kind: str
    what: str
    detail: str = ''


def judge(kind: str, description: str, read: Callable[[], str]) -> Outcome:
    """Reads an input and returns what happened.

    Args:
      kind: kind of the input.
      description: what is wrong with the input.
      read: reads the input and returns '', or how its result differs from the expected one.
    """
    # Imported here because it must not be imported before the platform of JAX is chosen.
    from cpt_jax.runtime.errors import UserError

    try:
        difference = read()
    except UserError as error:
        if '\n' in str(error):
            return Outcome(kind, SILENT, f'{description}: a message of several lines: {error}')
        return Outcome(kind, ERROR)
    except Exception as error:
        call = traceback.extract_tb(error.__traceback__)[-1]
        where = f'{Path(call.filename).name}:{call.lineno}'
        line = ' '.join(str(error).split())[:150]
        return Outcome(kind, TRACEBACK, f'{description}: {type(error).__name__} at {where}: {line}')
    if difference:
        return Outcome(kind, SILENT, f'{description}: {difference}')
    return Outcome(kind, OK)


# Values of other types and of absurd sizes than any key has.
ABSURD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, 1e-30, 1e20, 10**9, 10**20, 2**31, 2**63, -(10**9),
    float('nan'), float('inf'), '', 'abc', 'auto', '12', 'é' * 100, '\0', [], [1], ['a'], [[1, 2]],
    {}, {'a': 1}, {'text': 'n'},
)  # fmt: skip


def choose_value(random: Random) -> Any:
    """Returns one of ABSURD_VALUES."""
    return random.choice(ABSURD_VALUES)


def damage_bytes(random: Random, data: bytes) -> bytes:
    """Returns the content of a file, cut or with a flipped bit or with inserted or lost bytes."""
    if not data:
        return b'\xff'
    place = random.randrange(len(data))
    choice = random.randrange(5)
    if choice == 0:
        return data[:place]
    if choice == 1:
        return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
    if choice == 2:
        inserted = random.choice([b'\xff', b'\0', b'\r', b'"', b'\n', b'{', b'\xef\xbb\xbf', b'\t'])
        return data[:place] + inserted + data[place:]
    if choice == 3:
        return data[:place] + data[place + random.randrange(1, 9) :]
    return data[:place] + data[place:][::-1]
