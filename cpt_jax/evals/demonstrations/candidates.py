"""Candidates for demonstrations: read from files, and made of STS-B's training sentences, a
dictionary, or labelled sentences.

One a line: a sentence, a tab and its word, and further pairs behind further tabs where several are
shown at once; or a whole template, as in the paper's icl_examples.txt.
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
    demonstrations_in,
    parse_template,
)

# Sentences of STS-B and definitions of the paper's 300.
SENTENCES, DEFINITIONS = 100, 200
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
# Task -> the word of each class. MRPC's samples are pairs, which have no sentence to show.
LABEL_WORDS = {
    **dict.fromkeys(('MR', 'CR', 'MPQA', 'SST2'), _SENTIMENT),
    'SUBJ': ('Subjective', 'Objective'),
    'TREC': tuple(_TREC_WORDS[name] for name in TREC_CLASSES),
}
WITHOUT_SPLIT = [name for name in LABEL_WORDS if 'all' in LAYOUTS[name].parts]


class Candidate(NamedTuple):
    """What may be shown before each text.

    Attributes:
      demonstrations: sentences and their words, in the model's template.
      template: a whole one in its place, where it is not that template with demonstrations.
      where: 'file:line' that it comes from.
    """

    demonstrations: tuple[Demonstration, ...]
    template: str = ''
    where: str = ''


def read_candidates(paths: Sequence[Path], template: str) -> list[Candidate]:
    """Those of the files, each once; a whole template that is `template` with demonstrations is
    these.

    Raises:
      UserError: with file and line, where one is neither form, or a word is missing; or there is
        none.
    """
    found: dict[tuple, Candidate] = {}
    for path in paths:
        for where, line in read_lines(epath.Path(path).expanduser()):
            one = (
                _template_candidate(where, line, template)
                if '\t' not in line
                else Candidate(_pairs(where, line), where=where)
            )
            found.setdefault(one[:2], one)
    if not found:
        raise UserError(f'--candidates {",".join(map(str, paths))}: holds no candidate')
    return list(found.values())


def _template_candidate(where: str, line: str, template: str) -> Candidate:
    if SLOT not in line and '*sent_0*' not in line:
        raise UserError(
            f'{where}: a sentence, a tab and its word are expected, or a whole template with '
            f'{SLOT}, not {line[:60]!r}'
        )
    whole = parse_template(line, where)
    shown = demonstrations_in(whole, template)
    return Candidate((), whole, where) if shown is None else Candidate(shown, where=where)


def _pairs(where: str, line: str) -> tuple[Demonstration, ...]:
    fields = [field.strip() for field in line.split('\t')]
    if len(fields) % 2 or not all(fields):
        raise UserError(
            f'{where}: a sentence, a tab and its word are expected, once or more; fill in what is '
            f'missing: {line[:60]!r}'
        )
    if any('=' in word for word in fields[1::2]):
        raise UserError(
            f'{where}: a word has no =, which stands before it in --demonstration: {line[:60]!r}'
        )
    return tuple(zip(fields[::2], fields[1::2], strict=True))


def format_candidates(candidates: Sequence[Sequence[Demonstration]]) -> str:
    """The content of a file of them."""
    return ''.join(
        '\t'.join(part for pair in shown for part in pair) + '\n' for shown in candidates
    )


def sts_sentences(data_dir: Path) -> list[str]:
    """The distinct sentences of STS-B's training split."""
    path = epath.Path(data_dir) / 'senteval/STS/STSBenchmark/sts-train.csv'
    return list(
        dict.fromkeys(text for pair in read_benchmark(path, 'train').texts for text in pair)
    )


def draw_sentences(data_dir: Path, count: int, seed: int) -> list[str]:
    """Some of them, for people or a language model to give words to; none with a quotation mark,
    which would end it in a template.
    """
    sentences = [text for text in sts_sentences(data_dir) if '"' not in text]
    return [
        sentences[place]
        for place in np.random.default_rng(seed).permutation(len(sentences))[:count]
    ]


def of_words(path: Path, data_dir: Path) -> list[tuple[Demonstration, ...]]:
    """Sentences of STS-B's training split with the words that a file gives them: a sentence, a tab
    and its word on each line.

    A sentence may differ from that of the split in capitals, spaces and punctuation: SentEval's are
    tokenised and lower-cased.

    Raises:
      UserError: with file and line, where a word is missing, or the sentence is not one of that
        split: those of dev and test would tell.
    """

    def letters(text):
        return re.sub(r'\W+', '', text.lower())

    known, found = set(map(letters, sts_sentences(data_dir))), []
    for where, line in read_lines(epath.Path(path)):
        shown = _pairs(where, line)
        for sentence, _ in shown:
            if letters(sentence) not in known:
                raise UserError(f"{where}: {sentence!r} is no sentence of STS-B's sts-train.csv")
        found.append(shown)
    return found


def of_dictionary(path: Path, count: int, seed: int) -> list[tuple[Demonstration, ...]]:
    """Definitions and the words that they define, drawn at random: single words, each once, with a
    capital as the paper's have.

    Args:
      path: tab-separated, with a header that names the columns word and definition.
    """
    found: dict[str, Demonstration] = {}
    rows = list(_dictionary_rows(path))
    for place in np.random.default_rng(seed).permutation(len(rows)):
        word, definition = rows[place]
        definition = clean_up(definition.rstrip('.; '))
        if len(found) < count and definition and re.fullmatch(r'[A-Za-z]+(-[A-Za-z]+)*', word):
            found.setdefault(word.lower(), (definition, word[0].upper() + word[1:]))
    if len(found) < count:
        raise UserError(
            f'--build_dictionary {path}: has {len(found)} single words, and --count is {count}'
        )
    return [(pair,) for pair in found.values()]


def _dictionary_rows(path: Path) -> Iterator[tuple[str, str]]:
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
            raise UserError(f'{where}: has no word or no definition: mend or remove the line')
        yield row['word'], row['definition']


def of_labels(task: str, data_dir: Path, count: int, seed: int) -> list[tuple[Demonstration, ...]]:
    """A training sentence of each class with its label as the word, drawn at random; of two classes
    the positive one stands first.

    Of a task without a split (MR, CR, SUBJ, MPQA) the training set is all sentences, of which the
    score's folds are made: as in the paper, those that are shown are among those that are tested.

    Raises:
      UserError: there is no such task, or no data of it.
    """
    if task not in LABEL_WORDS:
        raise UserError(f'--build_labels {task}: choose one of {", ".join(LABEL_WORDS)}')
    words, data = LABEL_WORDS[task], SentEvalSet(task, epath.Path(data_dir) / 'senteval')
    if not data.exists:
        raise UserError(
            f'--build_labels {task}: no senteval/{LAYOUTS[task].folder} in --data_dir {data_dir}'
        )
    part = data.part('all' if task in WITHOUT_SPLIT else 'train')
    random = np.random.default_rng(seed)
    classes = range(len(words))[::-1] if len(words) == 2 else range(len(words))
    columns = []
    for label in classes:
        sentences = [
            text
            for text, its in zip(part.texts[0], part.labels, strict=True)
            if its == label and any(map(str.isalnum, text))
        ]
        drawn = random.permutation(len(sentences))[:count]
        columns.append([(clean_up(sentences[place]), words[label]) for place in drawn])
    return list(zip(*columns, strict=False))
