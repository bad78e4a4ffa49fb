"""Candidate demonstrations: read from files, or built from STS-B's training sentences, a
dictionary, or labeled sentences.

A file has one candidate per line. A line is a sentence, a tab and its word, followed by more
tab-separated pairs if several demonstrations are shown at once. A line may also be a whole
template, as in icl_examples.txt of the PromptEOL paper.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import LAYOUTS, TREC_CLASSES, SentEvalSet
from cpt_jax.evals.tasks.sts import read_benchmark
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import read_lines
from cpt_jax.text.prompt_template import (
    SLOT,
    Demonstration,
    clean_up,
    find_demonstrations,
    parse_template,
)

# Default numbers of candidates of each kind, as in the PromptEOL paper, which has 300 in total.
SENTENCES = 100
DEFINITIONS = 200
LABEL_PAIRS = 100
_SENTIMENT = 'Negative', 'Positive'
_TREC_WORDS = dict(
    ABBR='Abbreviation',
    DESC='Description',
    ENTY='Entity',
    HUM='Human',
    LOC='Location',
    NUM='Number',
)
# Task -> the word of each class. MRPC is missing: its samples are pairs of sentences.
LABEL_WORDS = {
    **dict.fromkeys(('MR', 'CR', 'MPQA', 'SST2'), _SENTIMENT),
    'SUBJ': ('Subjective', 'Objective'),
    'TREC': tuple(_TREC_WORDS[name] for name in TREC_CLASSES),
}
WITHOUT_SPLIT = [name for name in LABEL_WORDS if 'all' in LAYOUTS[name].parts]


class Candidate(NamedTuple):
    """One choice of demonstrations to put in front of each text.

    Attributes:
      demonstrations: (sentence, word) pairs, which are filled into the model's template.
      template: template that replaces the model's; '': the model's template is used.
      where: 'file:line' of the candidate, for messages.
    """

    demonstrations: tuple[Demonstration, ...]
    template: str = ''
    where: str = ''


def read_candidates(paths: Sequence[Path], template: str) -> list[Candidate]:
    """Reads the candidates in `paths` without duplicates.

    Args:
      paths: files with one candidate per line.
      template: the model's template. A whole template in a file that equals it with demonstrations
        filled in is read as these demonstrations.

    Raises:
      UserError: a line is in neither format or lacks a word (with file and line), or there is no
        candidate.
    """
    found: dict[tuple, Candidate] = {}
    for path in paths:
        for where, line in read_lines(epath.Path(path)):
            if '\t' in line:
                candidate = Candidate(_parse_pairs(where, line), where=where)
            else:
                candidate = _parse_template_line(where, line, template)
            content = candidate[:2]  # without `where`
            found.setdefault(content, candidate)
    if not found:
        raise UserError(f'--candidates {",".join(map(str, paths))}: there is no candidate')
    return list(found.values())


def _parse_template_line(where: str, line: str, template: str) -> Candidate:
    if SLOT not in line and '*sent_0*' not in line:
        raise UserError(
            f'{where}: a sentence, a tab and its word are expected, or a whole template with '
            f'{SLOT}, not {line[:60]!r}'
        )
    whole = parse_template(line, where)
    shown = find_demonstrations(whole, template)
    if shown is None:
        return Candidate((), whole, where)
    return Candidate(shown, where=where)


def _parse_pairs(where: str, line: str) -> tuple[Demonstration, ...]:
    fields = [field.strip() for field in line.split('\t')]
    if len(fields) % 2 or not all(fields):
        raise UserError(
            f'{where}: a sentence, a tab and its word are expected, once or more; add the missing '
            f'part of {line[:60]!r}'
        )
    if any('=' in word for word in fields[1::2]):
        raise UserError(
            f'{where}: a word must not contain =, because --demonstration separates the sentence '
            f'from the word with it: {line[:60]!r}'
        )
    return tuple(zip(fields[::2], fields[1::2], strict=True))


def format_candidates(candidates: Sequence[Sequence[Demonstration]]) -> str:
    """Returns the text of a candidates file."""
    lines = ['\t'.join(part for pair in shown for part in pair) for shown in candidates]
    return ''.join(f'{line}\n' for line in lines)


def read_sts_sentences(data_dir: Path) -> list[str]:
    """Returns the distinct sentences of STS-B's training split."""
    path = epath.Path(data_dir) / 'senteval/STS/STSBenchmark/sts-train.csv'
    pairs = read_benchmark(path, 'train').texts
    return list(dict.fromkeys(text for pair in pairs for text in pair))


def draw_sentences(data_dir: Path, count: int, seed: int) -> list[str]:
    """Draws sentences of STS-B's training split at random, to be given a word by a person or a
    language model.

    Sentences with a quotation mark are left out, because the mark would end the sentence in a
    template.
    """
    sentences = [text for text in read_sts_sentences(data_dir) if '"' not in text]
    order = np.random.default_rng(seed).permutation(len(sentences))
    return [sentences[i] for i in order[:count]]


def read_sentence_words(path: Path, data_dir: Path) -> list[tuple[Demonstration, ...]]:
    """Reads sentences of STS-B's training split and their words, one sentence, tab and word per
    line.

    Case, spaces and punctuation are ignored when a sentence is looked up in the split, because
    SentEval's sentences are tokenized and lower-cased.

    Raises:
      UserError: a word is missing, or a sentence is not in the training split (with file and
        line). Sentences of the dev and test splits would leak into the scores.
    """

    def normalize_sentence(text):
        return re.sub(r'\W+', '', text.lower())

    known = set(map(normalize_sentence, read_sts_sentences(data_dir)))
    found = []
    for where, line in read_lines(epath.Path(path)):
        shown = _parse_pairs(where, line)
        for sentence, _ in shown:
            if normalize_sentence(sentence) not in known:
                raise UserError(f"{where}: {sentence!r} is not a sentence of STS-B's sts-train.csv")
        found.append(shown)
    return found


def draw_definitions(path: Path, count: int, seed: int) -> list[tuple[Demonstration, ...]]:
    """Draws random (definition, word) pairs from a dictionary.

    Only single words are taken, each once. They are capitalized, as in the PromptEOL paper.

    Args:
      path: tab-separated file whose header has the columns word and definition.
      count: number of definitions to return.
      seed: seed of the order.

    Raises:
      UserError: the header or a line is not as expected (with file and line), or there are fewer
        than `count` single words.
    """
    found: dict[str, Demonstration] = {}
    rows = list(_read_dictionary(path))
    for i in np.random.default_rng(seed).permutation(len(rows)):
        word, definition = rows[i]
        definition = clean_up(definition.rstrip('.; '))
        if len(found) < count and definition and re.fullmatch(r'[A-Za-z]+(-[A-Za-z]+)*', word):
            found.setdefault(word.lower(), (definition, word[0].upper() + word[1:]))
    if len(found) < count:
        raise UserError(
            f'--build_dictionary {path}: has {len(found)} single words, fewer than --count {count}'
        )
    return [(pair,) for pair in found.values()]


def _read_dictionary(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (word, definition) of each line."""
    lines = read_lines(epath.Path(path))
    where, header = next(lines, (f'{path}:1', ''))
    names = header.split('\t')
    if not {'word', 'definition'} <= {*names}:
        raise UserError(
            f'{where}: a header with word and definition, separated by tabs, is expected, not '
            f'{header[:60]!r}'
        )
    for where, line in lines:
        row = dict(zip(names, line.split('\t'), strict=False))
        if not row.get('word') or not row.get('definition'):
            raise UserError(f'{where}: has no word or no definition: fix or remove the line')
        yield row['word'], row['definition']


def draw_label_demonstrations(
    task: str, data_dir: Path, count: int, seed: int
) -> list[tuple[Demonstration, ...]]:
    """Draws candidates at random, each with one training sentence per class and its label as the
    word.

    With two classes, the positive one comes first. A task without a split (MR, CR, SUBJ, MPQA) is
    scored by cross-validation over all of its sentences, and candidates are drawn from all of them
    too. Therefore the shown sentences are also tested, as in the PromptEOL paper.

    Args:
      task: name of a SentEval task, a key of `LABEL_WORDS`.
      data_dir: folder that contains senteval/.
      count: number of candidates; fewer are returned if the smallest class has fewer sentences.
      seed: seed of the order.

    Raises:
      UserError: there is no such task, or its data are missing.
    """
    if task not in LABEL_WORDS:
        raise UserError(f'--build_labels {task}: choose one of {", ".join(LABEL_WORDS)}')
    words = LABEL_WORDS[task]
    data = SentEvalSet(task, epath.Path(data_dir) / 'senteval')
    if not data.exists:
        raise UserError(
            f'--build_labels {task}: no senteval/{LAYOUTS[task].folder} in --data_dir {data_dir}'
        )
    part = data.read_part('all' if task in WITHOUT_SPLIT else 'train')
    random = np.random.default_rng(seed)
    classes = range(len(words))
    if len(words) == 2:
        classes = classes[::-1]
    columns = []
    for label in classes:
        sentences = [
            text
            for text, text_label in zip(part.texts[0], part.labels, strict=True)
            if text_label == label and any(map(str.isalnum, text))
        ]
        drawn = random.permutation(len(sentences))[:count]
        columns.append([(clean_up(sentences[i]), words[label]) for i in drawn])
    return list(zip(*columns, strict=False))
