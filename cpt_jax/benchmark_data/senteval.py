"""SentEval's classification data: sentences and labels, in SentEval's order.

They are read from the files of SentEval's data/downstream.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import compute_file_fingerprint, find_paths

SIDE = 'x'  # side of all sentences: a classifier needs all of them encoded in the same way
# SentEval treats a blank line in MR, CR, SUBJ and MPQA as a sample (CR and MPQA end with one), and
# its encoders replace it by a full stop.
EMPTY = '.'

TREC_CLASSES = 'ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM'


class Part(NamedTuple):
    """Labelled sentences.

    Attributes:
      texts: one list of sentences, or two for pairs; in SentEval's order, by number of words and
        then by label.
      labels: int64 [N], class indices.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray


# (sentences, label) of each line of a file; sentences are lists of words.
Rows = Iterator[tuple[tuple[list[str], ...], int]]


class SentEvalLayout(NamedTuple):
    """Files of a task.

    Attributes:
      folder: path below senteval/.
      parts: name of a part -> (file, reader of the file) of each of its files; the only part is
        'all' if the task has no split.
      classes: names of the classes, by label.
    """

    folder: str
    parts: dict[str, list[tuple[str, Callable[[epath.Path], Rows]]]]
    classes: tuple[str, ...] = ('negative', 'positive')


def _read_text_lines(path: epath.Path, encoding: str) -> list[str]:
    """Returns the lines of a file. Raises UserError if it has another encoding."""
    try:
        return path.read_bytes().decode(encoding).removesuffix('\n').split('\n')
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path}: not {encoding} ({error.reason} at byte {error.start}): convert the file to '
            f'{encoding}'
        ) from None


def _make_one_class_reader(label: int) -> Callable[[epath.Path], Rows]:
    """Returns a reader of a file whose sentences all have the same label."""

    def read(path: epath.Path) -> Rows:
        for line in _read_text_lines(path, 'latin-1'):
            yield (line.split(),), label

    return read


def _read_sst(path: epath.Path) -> Rows:
    for number, line in enumerate(_read_text_lines(path, 'utf-8'), 1):
        fields = line.strip().split('\t')
        if len(fields) != 2 or fields[1] not in ('0', '1'):
            raise UserError(
                f'{path}:{number}: a sentence, a tab and the label 0 or 1 are expected, not '
                f'{line[:60]!r}'
            )
        yield (fields[0].split(),), int(fields[1])


def _read_trec(path: epath.Path) -> Rows:
    for number, line in enumerate(_read_text_lines(path, 'latin-1'), 1):
        label, colon, rest = line.strip().partition(':')
        if not colon or label not in TREC_CLASSES:
            raise UserError(
                f'{path}:{number}: CLASS:subclass and a question are expected, CLASS one of '
                f'{TREC_CLASSES}, not {line[:60]!r}'
            )
        yield (rest.split()[1:],), TREC_CLASSES.index(label)


def _read_mrpc(path: epath.Path) -> Rows:
    lines = _read_text_lines(path, 'utf-8-sig')
    for number, line in enumerate(lines[1:], 2):  # the first line has the column names
        # Not read with csv, which would interpret quotation marks: they are text here.
        fields = line.strip().split('\t')
        if len(fields) != 5 or fields[0] not in ('0', '1'):
            raise UserError(
                f'{path}:{number}: label 0 or 1, two ids and two sentences with tabs between them '
                f'are expected, not {line[:60]!r}'
            )
        yield (fields[3].split(), fields[4].split()), int(fields[0])


def _make_two_file_layout(
    folder: str, positive: str, negative: str, classes: tuple[str, str] = ('negative', 'positive')
) -> SentEvalLayout:
    """Returns the layout of a task with one file per class and no split."""
    files = [(positive, _make_one_class_reader(1)), (negative, _make_one_class_reader(0))]
    return SentEvalLayout(folder, {'all': files}, classes)


LAYOUTS = {
    'MR': _make_two_file_layout('MR', 'rt-polarity.pos', 'rt-polarity.neg'),
    'CR': _make_two_file_layout('CR', 'custrev.pos', 'custrev.neg'),
    'SUBJ': _make_two_file_layout(
        'SUBJ', 'subj.objective', 'subj.subjective', ('subjective', 'objective')
    ),
    'MPQA': _make_two_file_layout('MPQA', 'mpqa.pos', 'mpqa.neg'),
    'SST2': SentEvalLayout(
        'SST/binary',
        {part: [(f'sentiment-{part}', _read_sst)] for part in ('train', 'dev', 'test')},
    ),
    'TREC': SentEvalLayout(
        'TREC',
        {'train': [('train_5500.label', _read_trec)], 'test': [('TREC_10.label', _read_trec)]},
        TREC_CLASSES,
    ),
    'MRPC': SentEvalLayout(
        'MRPC',
        {part: [(f'msr_paraphrase_{part}.txt', _read_mrpc)] for part in ('train', 'test')},
        ('others', 'paraphrases'),
    ),
}


class SentEvalSet:
    """The sentences of one data set, and their vectors from one model.

    Sentences are read on first use. Sentences and vectors are kept, because several evaluation
    tasks share them.

    Attributes:
      name: 'MR', 'CR', 'SUBJ', 'MPQA', 'SST2', 'TREC' or 'MRPC'.
      layout: files of the task.
    """

    def __init__(self, name: str, senteval: epath.Path):
        self.name = name
        self.layout = LAYOUTS[name]
        self._folder = senteval / self.layout.folder
        self._parts: dict[str, Part] = {}
        self._embed: Embed | None = None
        self._vectors: dict[str, tuple[np.ndarray, ...]] = {}

    @property
    def exists(self) -> bool:
        return self._folder.is_dir()

    def read_part(self, part: str) -> Part:
        """Returns the sentences and labels of a part.

        Args:
          part: 'all' for a task without a split, else 'train', 'dev' or 'test'.

        Raises:
          UserError: a file is missing or cannot be used.
        """
        if part not in self._parts:
            self._parts[part] = self._read(part)
        return self._parts[part]

    def compute_vectors(self, embed: Embed, part: str) -> tuple[np.ndarray, ...]:
        """Returns the vectors of a part, float32 [N, D] for each of its lists of sentences.

        Raises:
          UserError: a vector has values that are not finite.
        """
        if self._embed is not embed:
            self._embed = embed
            self._vectors = {}
        if part not in self._vectors:
            self._vectors[part] = tuple(
                embed_texts(embed, texts, SIDE) for texts in self.read_part(part).texts
            )
        return self._vectors[part]

    @property
    def files(self) -> list[epath.Path]:
        """All files in the task's folder, including those that are not read."""
        return find_paths(self._folder, '*')

    def describe(self) -> dict[str, object]:
        """Returns the facts about the data that belong to the settings of a score."""
        paths = [self._folder / file for files in self.layout.parts.values() for file, _ in files]
        return {
            'classes': len(self.layout.classes),
            'side': f'{SIDE} for every sentence',
            'data': compute_file_fingerprint(*paths),
        }

    def _read(self, part: str) -> Part:
        files = [file for files in self.layout.parts.values() for file, _ in files]
        missing = [file for file in files if not (self._folder / file).exists()]
        if missing:
            raise UserError(
                f'{self._folder}: no {", ".join(missing)}; SentEval has {", ".join(files)} in '
                f'data/downstream/{self.layout.folder}'
            )
        rows = [row for file, read in self.layout.parts[part] for row in read(self._folder / file)]
        # SentEval sorts its samples in this way, so our folds contain the same samples as
        # SentEval's.
        rows.sort(key=lambda row: (*map(len, row[0]), row[1]))
        labels_N = np.array([label for _, label in rows], np.int64)
        if len(np.unique(labels_N)) < 2:
            where = ' and '.join(str(self._folder / file) for file, _ in self.layout.parts[part])
            raise UserError(
                f'{where}: all {len(rows)} samples are of one class: a classifier needs two'
            )
        columns = zip(*(sentences for sentences, _ in rows), strict=True)
        return Part(
            tuple([' '.join(words) or EMPTY for words in column] for column in columns), labels_N
        )


def find_senteval_sets(data_dir: epath.Path | None) -> dict[str, SentEvalSet]:
    """Returns the sets whose folder exists in `data_dir`/senteval, by name."""
    if not data_dir:
        return {}
    every = {name: SentEvalSet(name, data_dir / 'senteval') for name in LAYOUTS}
    return {name: data for name, data in every.items() if data.exists}


def assign_stratified_folds(
    labels_N: Sequence[int] | np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """Returns the index of the fold that each sample is tested in, int64 [N].

    The folds are those of scikit-learn's StratifiedKFold(folds, shuffle=True, random_state=seed)
    from release 0.22 on, which spreads every class evenly over the folds. SentEval's published
    numbers are from an earlier release with other folds.

    Raises:
      UserError: a class has fewer samples than there are folds.
    """
    labels_N = np.asarray(labels_N)
    classes, first, counts = np.unique(labels_N, return_index=True, return_counts=True)
    if counts.min() < folds:
        raise UserError(
            f'{counts.min()} samples of class {classes[counts.argmin()]} are too few for {folds} '
            f'folds: give more data'
        )
    by_appearance = np.argsort(first)
    ordered_N = np.repeat(np.arange(len(classes)), counts[by_appearance])
    generator = np.random.RandomState(seed)
    fold_N = np.empty(len(labels_N), np.int64)
    for rank, i in enumerate(by_appearance):
        # Every folds-th sample of the labels in order goes to the same fold.
        samples_per_fold = [(ordered_N[fold::folds] == rank).sum() for fold in range(folds)]
        folds_of_class = np.repeat(np.arange(folds), samples_per_fold)
        generator.shuffle(folds_of_class)
        fold_N[labels_N == classes[i]] = folds_of_class
    return fold_N
