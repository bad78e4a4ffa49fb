"""SentEval's classification data: sentences and labels in the files of its data/downstream, in the
order in which it uses them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import file_fingerprint

SIDE = 'x'  # whose delimiters every sentence gets: a classifier compares sentences of one kind
# A blank line of MR, CR, SUBJ and MPQA is a sample for SentEval (CR and MPQA end with one); its
# encoders see a full stop.
EMPTY = '.'

TREC_CLASSES = 'ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM'


class Part(NamedTuple):
    """Some labelled sentences.

    Attributes:
      texts: one column, or two for pairs; sorted as SentEval does: by words, then by label.
      labels: int64[N], classes from 0.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray


# (file, its lines) -> (sentences, label) of each, sentences as lists of words.
Rows = Iterator[tuple[tuple[list[str], ...], int]]


class SentEvalLayout(NamedTuple):
    """Where a task's data lie and how they are read.

    Attributes:
      folder: below senteval/.
      parts: part -> (file, its reader) of each of its files. 'all' alone: the task has no split.
      classes: their names, that of label 0 first.
    """

    folder: str
    parts: dict[str, list[tuple[str, Callable[[epath.Path], Rows]]]]
    classes: tuple[str, ...] = ('negative', 'positive')


def _lines(path: epath.Path, encoding: str) -> list[str]:
    """Of the file, without what ends them. Raises UserError for a file that is not in the
    encoding.
    """
    try:
        return path.read_bytes().decode(encoding).removesuffix('\n').split('\n')
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path}: not {encoding} ({error.reason} at byte {error.start}): convert the file'
        ) from None


def _one_class(label: int) -> Callable[[epath.Path], Rows]:
    def read(path: epath.Path) -> Rows:
        for line in _lines(path, 'latin-1'):
            yield (line.split(),), label

    return read


def _sst(path: epath.Path) -> Rows:
    for number, line in enumerate(_lines(path, 'utf-8'), 1):
        fields = line.strip().split('\t')
        if len(fields) != 2 or fields[1] not in ('0', '1'):
            raise UserError(
                f'{path}:{number}: a sentence, a tab and the label 0 or 1 are expected, not '
                f'{line[:60]!r}'
            )
        yield (fields[0].split(),), int(fields[1])


def _trec(path: epath.Path) -> Rows:
    for number, line in enumerate(_lines(path, 'latin-1'), 1):
        label, colon, rest = line.strip().partition(':')
        if not colon or label not in TREC_CLASSES:
            raise UserError(
                f'{path}:{number}: CLASS:subclass and a question are expected, CLASS one of '
                f'{TREC_CLASSES}, not {line[:60]!r}'
            )
        yield (rest.split()[1:],), TREC_CLASSES.index(label)


def _mrpc(path: epath.Path) -> Rows:
    for number, line in enumerate(_lines(path, 'utf-8-sig')[1:], 2):  # the first names the columns
        fields = line.strip().split('\t')  # quotation marks are text
        if len(fields) != 5 or fields[0] not in ('0', '1'):
            raise UserError(
                f'{path}:{number}: label 0 or 1, two ids and two sentences with tabs between them '
                f'are expected, not {line[:60]!r}'
            )
        yield (fields[3].split(), fields[4].split()), int(fields[0])


def _two_files(
    folder: str, positive: str, negative: str, classes: tuple[str, str] = ('negative', 'positive')
) -> SentEvalLayout:
    return SentEvalLayout(
        folder, {'all': [(positive, _one_class(1)), (negative, _one_class(0))]}, classes
    )


LAYOUTS = {
    'MR': _two_files('MR', 'rt-polarity.pos', 'rt-polarity.neg'),
    'CR': _two_files('CR', 'custrev.pos', 'custrev.neg'),
    'SUBJ': _two_files('SUBJ', 'subj.objective', 'subj.subjective', ('subjective', 'objective')),
    'MPQA': _two_files('MPQA', 'mpqa.pos', 'mpqa.neg'),
    'SST2': SentEvalLayout(
        'SST/binary', {part: [(f'sentiment-{part}', _sst)] for part in ('train', 'dev', 'test')}
    ),
    'TREC': SentEvalLayout(
        'TREC',
        {'train': [('train_5500.label', _trec)], 'test': [('TREC_10.label', _trec)]},
        TREC_CLASSES,
    ),
    'MRPC': SentEvalLayout(
        'MRPC',
        {part: [(f'msr_paraphrase_{part}.txt', _mrpc)] for part in ('train', 'test')},
        ('others', 'paraphrases'),
    ),
}


class SentEvalSet:
    """The data of one task; read when they are asked for, and kept with the vectors of one model,
    as several tasks may share them.

    Attributes:
      name: 'MR', 'CR', 'SUBJ', 'MPQA', 'SST2', 'TREC' or 'MRPC'.
      layout: of its files.
    """

    def __init__(self, name: str, senteval: epath.Path):
        self.name, self.layout = name, LAYOUTS[name]
        self._folder = senteval / self.layout.folder
        self._parts: dict[str, Part] = {}
        self._embed: Embed | None = None
        self._vectors: dict[str, tuple[np.ndarray, ...]] = {}

    @property
    def exists(self) -> bool:
        return self._folder.is_dir()

    def part(self, part: str) -> Part:
        """'all' of a task without a split, else 'train', 'dev' or 'test'. Raises UserError for
        files that cannot be used.
        """
        if part not in self._parts:
            self._parts[part] = self._read(part)
        return self._parts[part]

    def vectors(self, embed: Embed, part: str) -> tuple[np.ndarray, ...]:
        """float32[N, D] of each column of the part's texts. Raises UserError for numbers that are
        not finite.
        """
        if self._embed is not embed:
            self._embed, self._vectors = embed, {}
        if part not in self._vectors:
            self._vectors[part] = tuple(
                embed_texts(embed, texts, SIDE) for texts in self.part(part).texts
            )
        return self._vectors[part]

    @property
    def files(self) -> list[epath.Path]:
        """All that is in its folder, read or not."""
        return list(self._folder.glob('*'))

    def facts(self) -> dict[str, object]:
        """What belongs to the settings of a score."""
        paths = [self._folder / file for files in self.layout.parts.values() for file, _ in files]
        return {
            'classes': len(self.layout.classes),
            'side': f'{SIDE} for every sentence',
            'data': file_fingerprint(*paths),
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
        # To have the samples in each fold that SentEval has there.
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


def find_sets(data_dir: epath.Path | None) -> dict[str, SentEvalSet]:
    """Returns the sets whose folder is in `data_dir`/senteval, by name."""
    if not data_dir:
        return {}
    every = {name: SentEvalSet(name, data_dir / 'senteval') for name in LAYOUTS}
    return {name: data for name, data in every.items() if data.exists}


def stratified_folds(labels_N: Sequence[int] | np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int64[N]: the fold that each sample is tested in, as of scikit-learn's StratifiedKFold(folds,
    shuffle=True, random_state=seed).

    Every class is spread evenly over the folds (as from release 0.22 on; SentEval was published
    with an earlier one, whose folds differ). Raises UserError where a class has fewer samples than
    there are folds.
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
    generator, fold_N = np.random.RandomState(seed), np.empty(len(labels_N), np.int64)
    for place, i in enumerate(by_appearance):
        own = np.repeat(
            np.arange(folds), [(ordered_N[fold::folds] == place).sum() for fold in range(folds)]
        )
        generator.shuffle(own)
        fold_N[labels_N == classes[i]] = own
    return fold_N
