"""Damaged JSON lines and CSV files, compared with readers of their own.

The readers here share no code with cpt_jax and use no csv module.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.outcome import Outcome, choose_value, damage_bytes, judge

MAX_CHARS = 60
MAX_ROW_LINES = 4
MAX_BAD_SHARE = 0.001
# (x, y, hard negatives)
Pair = tuple[str, str, tuple[str, ...]]
WORDS = (
    'how to read a file', 'open(path)', 'é ü 漢字', '🎉', 'say "hi"', "it's", 'a, b', 'a\tb', ' x ',
    '', ' ', '\u00a0', '\u2028', 'x' * (MAX_CHARS + 1), '\\n', '{}', '[', 'null', '5" or 6"',
)  # fmt: skip


def fuzz_json_lines(random: Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Yields the outcome of each of `count` files."""
    from cpt_jax.data.sources.jsonl import JsonlSource

    path = folder / 'rows.jsonl'
    for number in range(count):
        data = _make_json_lines(random)
        path.write_bytes(data)
        expected, bad = _read_json_lines(data)

        def read(expected=expected, bad=bad) -> str:
            return _compare(
                lambda share: JsonlSource(str(path), 'all', max_bad_share=share, max_chars=60),
                expected,
                bad,
                len(expected) + bad,
            )

        yield judge('jsonl', f'file {number}: {data[:300]!r}', read)


def fuzz_csv(random: Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Yields the outcome of each of `count` files."""
    from cpt_jax.data.sources.csv_pairs import CsvSource

    path = folder / 'rows.csv'
    for number in range(count):
        separator = random.choice(',\t;')
        quoting = random.choice(['rfc4180', 'rfc4180', 'none'])
        data = _make_table(random, separator, quoting)
        path.write_bytes(data)
        expected, bad, lines = _read_table(data, separator, quoting)

        def make(share, separator=separator, quoting=quoting) -> CsvSource:
            return CsvSource(
                str(path), 'all', 'q', 'd', 'n', separator=separator, max_bad_share=share,
                max_chars=MAX_CHARS, quoting=quoting, max_row_lines=MAX_ROW_LINES,
            )  # fmt: skip

        def read(make=make, expected=expected, bad=bad, lines=lines) -> str:
            return _compare(make, expected, bad, lines)

        yield judge('csv', f'file {number}, {quoting} {separator!r}: {data[:300]!r}', read)


def _compare(make, expected: Sequence[Pair] | None, bad: int, lines: int) -> str:
    """Returns how a source differs from the expected pairs; '' if it does not.

    Args:
      make: function from `max_bad_share` to the source.
      expected: the pairs; None if the file must be refused.
      bad: number of lines in bad rows.
      lines: number of lines of all rows.
    """
    from cpt_jax.runtime.errors import UserError

    try:
        source = make(1.0)
    except UserError as error:
        if expected:
            return f'refused, although {len(expected)} pairs can be read: {error}'
        raise
    if not expected:
        return f'{len(source)} pairs, but the file has none'
    found = [tuple(source[index][:3]) for index in range(len(source))]
    if found != list(expected):
        return f'pairs {found[:3]}..., expected {list(expected)[:3]}...'
    if source.problems.bad_lines != bad:
        return f'{source.problems.bad_lines} bad lines, expected {bad}'
    try:
        make(MAX_BAD_SHARE)
        is_refused = False
    except UserError:
        is_refused = True
    if is_refused != (bad > MAX_BAD_SHARE * lines):
        return f'{bad} bad lines of {lines}: refused is {is_refused}'
    return ''


def _make_json_lines(random: Random) -> bytes:
    lines = []
    for _ in range(random.randrange(1, 12)):
        names = random.choice(
            [('x', 'y', 'negatives')] * 4
            + [('query', 'pos', 'neg'), ('anchor', 'positive', 'negative_1'), ('q', 'y', 'n')]
        )
        row: dict[str, Any] = {names[0]: random.choice(WORDS), names[1]: random.choice(WORDS)}
        if names[1] == 'pos' or random.random() < 0.1:
            row[names[1]] = [random.choice((*WORDS, None)) for _ in range(random.randrange(3))]
        if random.random() < 0.5:
            row[names[2]] = [random.choice((*WORDS, None)) for _ in range(random.randrange(4))]
        if random.random() < 0.15:
            row[random.choice([*row, 'id', 'group'])] = choose_value(random)
        line = json.dumps(row, ensure_ascii=random.random() < 0.5).encode('utf-8', 'replace')
        if random.random() < 0.15:
            line = damage_bytes(random, line)
        lines.append(line)
    end = random.choice([b'\n', b'\n', b'\r\n', b'\n\n'])
    start = random.choice([b'', b'', b'\xef\xbb\xbf'])
    return start + end.join(lines) + random.choice([b'', end])


def _read_json_lines(data: bytes) -> tuple[list[Pair], int]:
    """Returns the pairs of a file, and the number of bad rows."""
    pairs: list[Pair] = []
    bad = 0
    for line in data.removeprefix(b'\xef\xbb\xbf').split(b'\n'):
        if not line.strip():
            continue
        found = _read_json_row(line.strip())
        bad += found is None
        pairs += found or []
    return pairs, bad


def _read_json_row(line: bytes) -> list[Pair] | None:
    """Returns the pairs of a row; None if it is bad."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    x, y, negatives = 'x', 'y', ['negatives']
    if 'x' not in row and 'y' not in row:
        if 'query' in row and 'pos' in row:
            x, y, negatives = 'query', 'pos', ['neg']
        elif 'anchor' in row and 'positive' in row:
            x, y, negatives = 'anchor', 'positive', ['negative', 'negative_1']
    texts = row.get(y) if isinstance(row.get(y), list) else [row.get(y, 0)]
    if isinstance(row.get(y), list):
        texts = [text for text in texts if not _is_left_out(text)]
    hard: list[Any] = []
    for name in negatives:
        value = row.get(name)
        if isinstance(value, str) and name != 'negatives':
            value = [value]
        if value is not None and not isinstance(value, list):
            return None
        hard += [text for text in value or [] if not _is_left_out(text)]
    if not texts or not all(map(_is_good_text, [row.get(x), *texts, *hard])):
        return None
    return [(row[x], text, tuple(hard)) for text in texts]


def _is_left_out(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_good_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_CHARS:
        return False
    return not any('\ud800' <= character <= '\udfff' for character in value)


def _make_table(random: Random, separator: str, quoting: str) -> bytes:
    header = random.choice(
        [['q', 'd', 'n']] * 8 + [['d', 'q', 'n', 'id'], ['q', 'd'], ['q', 'q', 'd']]
    )
    rows = [header]
    for _ in range(random.randrange(1, 12)):
        rows.append([random.choice((*WORDS, 'two\nlines')) for _ in header])
        if random.random() < 0.05:
            rows[-1].append('one more')
    end = random.choice(['\n', '\n', '\r\n'])
    lines = [
        separator.join(_write_cell(random, cell, separator, quoting) for cell in row)
        for row in rows
    ]
    data = (end.join(lines) + random.choice(['', end])).encode()
    if random.random() < 0.3:
        data = damage_bytes(random, data)
    return random.choice([b'', b'', b'\xef\xbb\xbf']) + data


def _write_cell(random: Random, cell: str, separator: str, quoting: str) -> str:
    """Returns a cell as a program writes it; some programs write quotation marks as they are."""
    is_special = any(character in cell for character in f'{separator}"\n\r')
    if quoting == 'none' or random.random() < 0.1:
        return cell.replace('\n', ' ').replace(separator, ' ')
    if is_special or random.random() < 0.1:
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _read_table(data: bytes, separator: str, quoting: str) -> tuple[list[Pair] | None, int, int]:
    """Returns the pairs (None: the file must be refused), the number of lines in bad rows, and that
    in all rows.
    """
    rows = list(_split_rows(data, separator, quoting))
    if not rows:
        return None, 0, 0
    header = _split_cells(rows[0].removeprefix(b'\xef\xbb\xbf'), separator, quoting)
    pairs: list[Pair] = []
    bad = lines = 0
    for row in rows[1:]:
        spanned = row.rstrip(b'\r\n').count(b'\n') + 1
        lines += spanned
        pair = _read_table_row(row, header, separator, quoting)
        bad += 0 if pair else spanned
        pairs += [pair] if pair else []
    names = [name for name in header or [] if name.strip()]
    return (pairs if len(names) == len(set(names)) else None), bad, lines


def _split_rows(data: bytes, separator: str, quoting: str) -> Iterator[bytes]:
    """Yields the rows that are not blank."""
    lines = data.split(b'\n')
    lines = [line + b'\n' for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    index = 0
    while index < len(lines):
        count = 1
        if quoting == 'rfc4180':
            while not _is_complete(b''.join(lines[index : index + count]), separator):
                count += 1
                if count > MAX_ROW_LINES or index + count > len(lines):
                    count = 1
                    break
        row = b''.join(lines[index : index + count])
        if row.strip():
            yield row
        index += count


def _is_complete(row: bytes, separator: str) -> bool:
    """Returns whether no quoted cell is open at the end of a row."""
    is_open = False
    at_start = True  # of a cell
    text = row.decode('utf-8', 'surrogateescape')
    index = 0
    while index < len(text):
        character = text[index]
        if is_open:
            if character == '"' and text[index + 1 : index + 2] == '"':
                index += 1
            elif character == '"':
                is_open = False
        elif character in '\r\n':
            return True  # the row ends, or is none
        elif character == '"' and at_start:
            is_open = True
        at_start = not is_open and character == separator
        index += 1
    return not is_open


def _split_cells(row: bytes, separator: str, quoting: str) -> list[str] | None:
    """Returns the cells of a row; None if it is none."""
    try:
        text = row.decode()
    except UnicodeDecodeError:
        return None
    if quoting == 'none':
        return text.rstrip('\r\n').split(separator)
    cells = []
    rest = text.rstrip('\r\n')  # some programs end lines in \r\r\n
    while True:
        if rest.startswith('"'):
            cell, end = '', 1
            while (close := rest.find('"', end)) >= 0 and rest[close + 1 : close + 2] == '"':
                cell += rest[end : close + 1]
                end = close + 2
            if close < 0:
                return None
            cell += rest[end:close]
            rest = rest[close + 1 :]
            if rest and not rest.startswith(separator):
                return None
        else:
            cell = rest.split(separator)[0]
            rest = rest[len(cell) :]
            if '\r' in cell or '\n' in cell:
                return None
        cells.append(cell)
        if not rest:
            return cells
        rest = rest[1:]


def _read_table_row(
    row: bytes, header: list[str] | None, separator: str, quoting: str
) -> Pair | None:
    cells = _split_cells(row, separator, quoting)
    if header is None or cells is None or len(cells) != len(header) or {'q', 'd', 'n'} - {*header}:
        return None
    found = dict(zip(header, cells, strict=True))
    hard = [found['n']] if found['n'].strip() else []
    if not all(map(_is_good_text, [found['q'], found['d'], *hard])):
        return None
    return found['q'], found['d'], tuple(hard)
