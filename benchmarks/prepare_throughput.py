"""Measures launch/prepare.py: megabytes of text per second and core, and the peak memory.

A corpus of generated prose is read, cut, compared for exact duplicates and written, in the stages
of the program and in this process. The steps that may be added are measured alone, on the same
documents: language, quality, near duplicates and decontamination.

Example:
  python benchmarks/prepare_throughput.py --megabytes 100 --json throughput.json
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.prepare.decontamination import Decontaminator, index_test_texts
from cpt_jax.prepare.document import TextPair
from cpt_jax.prepare.languages import identify_language
from cpt_jax.prepare.near_duplicates import compute_signature
from cpt_jax.prepare.quality import explain_poor_quality
from cpt_jax.prepare.run import prepare
from cpt_jax.runs.config_file import load_config

_MEGABYTES = flags.DEFINE_integer('megabytes', 100, 'Size of the corpus.', lower_bound=1)
_JSON = flags.DEFINE_string('json', '', 'File for the results.')

_DOCUMENT_CHARACTERS = 3000  # near the mean of FineWeb's documents
_FILE_MB = 8
_SAMPLE = 500


def write_corpus(folder: Path, megabytes: int) -> list[str]:
    """Writes JSON lines of documents; returns the first of them.

    Words are drawn by Zipf's law from 50,000, and a tenth of the documents is repeated.
    """
    random = np.random.default_rng(0)
    letters = np.array(list('abcdefghijklmnopqrstuvwxyz'))
    words = np.array(
        [''.join(random.choice(letters, random.integers(2, 10))) for _ in range(50_000)]
    )
    chances = 1 / np.arange(1, len(words) + 1)
    chances /= chances.sum()
    sample: list[str] = []
    written = 0
    file = 0
    while written < megabytes * 1e6:
        size = 0
        with (folder / f'{file:04d}.jsonl').open('w') as output:
            while size < _FILE_MB * 1e6:
                if sample and random.random() < 0.1:
                    text = sample[random.integers(len(sample))]
                else:
                    text = make_prose(random.choice(words, _DOCUMENT_CHARACTERS // 6, p=chances))
                if len(sample) < _SAMPLE:
                    sample.append(text)
                size += output.write(json.dumps({'text': text}) + '\n')
        written += size
        file += 1
    return sample


def make_prose(words: np.ndarray) -> str:
    """Returns sentences of 15 words in paragraphs of 6 sentences."""
    sentences = [' '.join(words[i : i + 15]).capitalize() + '.' for i in range(0, len(words), 15)]
    paragraphs = [' '.join(sentences[i : i + 6]) for i in range(0, len(sentences), 6)]
    return '\n\n'.join(paragraphs)


def measure_step(texts: list[str], step: Callable[[str], object]) -> float:
    """Returns the megabytes of text a second of CPU time that a step takes."""
    step(texts[0])  # loads models
    start = time.process_time()
    for text in texts:
        step(text)
    return sum(map(len, texts)) / 1e6 / (time.process_time() - start)


def measure_preparation(folder: Path, output: Path) -> float:
    """Returns the megabytes of input a second of CPU time of a whole preparation."""
    config = load_config('configs/prepare_text.py')
    config['sources'] = {
        'text': {'reader': 'jsonl', 'path': str(folder), 'pairs': 'neighbours'},
    }
    size = sum(path.stat().st_size for path in folder.iterdir())
    start = time.process_time()
    prepare(config, output, workers=1)
    return size / 1e6 / (time.process_time() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, 'corpus')
        folder.mkdir()
        sample = write_corpus(folder, _MEGABYTES.value)
        speed = measure_preparation(folder, Path(temporary, 'output'))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    cleaner = Decontaminator(index_test_texts({'test': [text[:200] for text in sample]}))
    steps = {
        'language': measure_step(sample, identify_language),
        'quality': measure_step(sample, explain_poor_quality),
        'near_duplicates': measure_step(sample, compute_signature),
        'decontamination': measure_step(
            sample, lambda text: cleaner.is_contaminated(TextPair(text[:1000], text[1000:]), '')
        ),
    }
    results = {'mb_per_second_per_core': speed, 'peak_gib': peak, 'steps_mb_per_second': steps}
    print(f'read, cut, exact duplicates, write: {speed:.1f} MB/s a core; peak {peak:.2f} GiB')
    for name, value in steps.items():
        print(f'{name}: {value:.1f} MB/s a core')
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    run_program(main)
