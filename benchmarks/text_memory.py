"""Measures the memory and the start of a large `text` source in several processes of a machine.

The text is that of a folder, repeated until it has --gb GB. In each repetition, the tenth word of
every line is a number, so that no document repeats another one. The processes start together with
one empty cache: one of them cuts the documents, the others wait for it. Each then reads random
pairs. A second start finds the cache. Memory is the peak of a process (VmHWM), with Python, JAX and
all libraries.

Example:
  python benchmarks/text_memory.py --folder my/text
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.data.sources.text import TextSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.tokenizer import load_tokenizer

_FOLDER = flags.DEFINE_string('folder', '', 'Folder with .txt and .md files to repeat.')
_GB = flags.DEFINE_float('gb', 1.0, 'Size of the text in GB.')
_PROCESSES = flags.DEFINE_integer('processes', 2, 'Number of processes.', lower_bound=1)
_TOKENIZER = flags.DEFINE_string(
    'tokenizer', '', 'Tokenizer that counts tokens. Default: four characters are a token.'
)
_PAIRS = flags.DEFINE_integer('pairs', 100_000, 'Number of random pairs that a process reads.')
_JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
_READ = flags.DEFINE_string('read', '', 'Internal: open this folder in this process.')

SEPARATOR = '^DOC '
FILE_BYTES = 20_000_000


class FourCharacters:
    """Counts four characters as one token."""

    fingerprint = 'four characters'

    def count(self, texts: Sequence[str]) -> list[int]:
        return [-(-len(text) // 4) for text in texts]


def main() -> None:
    if _READ.value:
        print(json.dumps(_open_and_read(_READ.value)))
        return
    if not _FOLDER.value:
        raise UserError('--folder is missing: name a folder with .txt or .md files')
    work = Path(tempfile.mkdtemp(prefix='text_memory'))
    try:
        size = _write_text(work / 'text', Path(_FOLDER.value))
        starts = [_start_processes(work) for _ in range(2)]
    finally:
        shutil.rmtree(work)
    first, second = starts
    peak = max(row['peak'] for row in first + second)
    print(f'{size / 1e9:.2f} GB of text, {first[0]["pairs"]:,} pairs, {len(first)} processes')
    for name, rows in (('first', first), ('second', second)):
        seconds = ', '.join(f'{row["seconds"]:.1f}' for row in rows)
        memory = ', '.join(f'{row["peak"] / 2**30:.2f}' for row in rows)
        before = ', '.join(f'{row["before"] / 2**30:.2f}' for row in rows)
        print(
            f'{name} start: {seconds} s; peak memory {memory} GiB, of which {before} GiB before '
            f'the source'
        )
    print(f'reading: {second[0]["pairs_per_second"]:,.0f} pairs/s')
    if _JSON.value:
        results = {
            'peak_gib': peak / 2**30,
            'first_seconds': max(row['seconds'] for row in first),
            'second_seconds': max(row['seconds'] for row in second),
            'bytes': size,
            'processes': starts,
        }
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


def _write_text(output: Path, folder: Path) -> int:
    """Writes --gb GB of text in files of 20 MB, and returns their size in bytes."""
    output.mkdir()
    documents = _read_texts(folder)
    size = 0
    file_size = FILE_BYTES
    copy = 0
    file = None
    while size < _GB.value * 1e9:
        for text in documents:
            data = _change(text, copy).encode()
            if file is None or file_size >= FILE_BYTES:
                file = (output / f'{size:015d}.txt').open('wb')
                file_size = 0
            file.write(data)
            file_size += len(data)
            size += len(data)
        copy += 1
    assert file is not None
    file.close()
    return size


def _read_texts(folder: Path) -> list[str]:
    """Returns the texts of a folder in parts of about 3,000 characters, as documents of the web."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix in ('.txt', '.md'))
    text = '\n'.join(path.read_text('utf-8', 'replace') for path in paths)
    lines = text.splitlines()
    parts: list[list[str]] = [[]]
    characters = 0
    for line in lines:
        parts[-1].append(line)
        characters += len(line)
        if characters > 3000:
            parts.append([])
            characters = 0
    return ['\n'.join(part) for part in parts]


def _change(text: str, copy: int) -> str:
    """Returns a document with a separator line and the copy's number in each line."""
    return f'DOC {copy}\n' + '\n'.join(_change_lines(text, copy)) + '\n'


def _change_lines(text: str, copy: int) -> Iterator[str]:
    for line in text.splitlines():
        words = line.split(' ')
        if len(words) > 10:
            words[9] = str(copy)
        yield ' '.join(words)


def _start_processes(work: Path) -> list[dict[str, float]]:
    """Returns the measurements of each process."""
    command = [
        sys.executable, __file__, f'--read={work / "text"}', f'--tokenizer={_TOKENIZER.value}',
        f'--pairs={_PAIRS.value}',
    ]  # fmt: skip
    environment = os.environ | {'CPT_JAX_CACHE': str(work / 'cache')}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(_PROCESSES.value)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError('a process failed')
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def _open_and_read(path: str) -> dict[str, float]:
    """Opens the training and the held-out pairs, and reads random ones.

    Returns:
      Seconds to open them, the peak of resident memory in bytes, the resident memory before, the
      number of pairs, and pairs read per second.
    """
    tokenizer = load_tokenizer(Path(_TOKENIZER.value)) if _TOKENIZER.value else FourCharacters()
    before = _read_memory('VmRSS')
    start = time.perf_counter()
    train, _ = (
        TextSource(path, split, tokenizer, separator=SEPARATOR, holdout=0.01)
        for split in ('train', 'heldout')
    )
    seconds = time.perf_counter() - start
    indices = np.random.default_rng(0).integers(len(train), size=_PAIRS.value)
    start = time.perf_counter()
    for index in indices.tolist():
        train[index]
    reading = time.perf_counter() - start
    return {
        'seconds': seconds,
        'peak': _read_memory('VmHWM'),
        'before': before,
        'pairs': len(train),
        'pairs_per_second': _PAIRS.value / reading,
    }


def _read_memory(key: str) -> int:
    """Returns resident memory of this process in bytes: current (VmRSS) or peak (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == '__main__':
    run_program(main)
