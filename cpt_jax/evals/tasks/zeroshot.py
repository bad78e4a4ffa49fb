"""Classification by the nearest label text, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import SIDE, SentEvalSet, find_senteval_sets
from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.intervals.item_scores import QueryScores
from cpt_jax.evals.options import Options, declare_option
from cpt_jax.evals.report.embedding_map import draw_task_map
from cpt_jax.evals.task import Context, Result, Task, TaskKind, read_library_versions
from cpt_jax.evals.tasks.knn import compute_majority_accuracy, normalize_rows
from cpt_jax.runtime.errors import UserError

WORDS = 'negative', 'positive'  # label 0 and label 1
TEMPLATE = 'this is an example of a {} movie review.'  # from the cpt paper
SET = 'SST2'


@dataclass(frozen=True)
class ZeroShotOptions(Options):
    """Options of zeroshot/*."""

    label_words: Sequence[str] = declare_option(WORDS, 'Label words of zeroshot/*, label 0 first.')
    label_template: str = declare_option(
        TEMPLATE, 'Sentence that describes a label in zeroshot/*; {} is replaced by its word.'
    )


@dataclass(frozen=True)
class ZeroShot(Task):
    """Classifies test sentences by the nearest label text. Label texts are words or sentences that
    describe the label.

    Attributes:
      name: task name, 'zeroshot/SST2'.
      data: labeled sentences with the part test.
      options: options of the kind.
    """

    name: str
    data: SentEvalSet
    options: ZeroShotOptions = ZeroShotOptions()

    def __post_init__(self) -> None:
        words = self.options.label_words
        classes = len(self.data.layout.classes)
        if len(words) != classes or not all(word.strip() for word in words):
            raise UserError(f'--label_words {",".join(words)}: give {classes} words, label 0 first')
        if '{}' not in self.options.label_template:
            raise UserError(
                f'--label_template {self.options.label_template!r}: must contain {{}}, which is '
                f'replaced by the label word'
            )

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, fingerprint_files(self.data.files))

    def run(self, embed: Embed) -> Result:
        test = self.data.read_part('test')
        test_QxD = normalize_rows(*self.data.compute_vectors(embed, 'test'))
        words = self.options.label_words
        template = self.options.label_template
        forms = {
            'words': list(words),
            'description': [template.replace('{}', word) for word in words],
        }
        # The paper does not specify the side of the labels: that of the sentences (queries), or y
        # (documents).
        sides = {'': SIDE, '_as_document': 'y'}
        right: dict[str, np.ndarray] = {}
        for ending, side in sides.items():
            for form, labels in forms.items():
                predicted_Q = find_nearest_label(
                    test_QxD, normalize_rows(embed_texts(embed, labels, side))
                )
                right_Q = (predicted_Q == test.labels).astype(np.float64)
                right[f'accuracy_{form}{ending}'] = right_Q
        facts = self.data.describe()
        return Result(
            metric='accuracy_description',
            metrics={name: float(np.mean(right_Q)) for name, right_Q in right.items()},
            n=len(test.labels),
            settings={
                'protocol': 'the label with the largest cosine; of equal ones the first',
                'labels': forms,
                'label_side': f'{SIDE}; y in the metrics that end in as_document',
                'libraries': read_library_versions(),
                **facts,
            },
            baselines={
                'majority': dict.fromkeys(
                    right, compute_majority_accuracy(test.labels, test.labels)
                )
            },
            counted='sentences',
            map=draw_task_map(self.data, embed),
            item_scores=QueryScores(str(facts['data']), right),
        )


def find_zero_shot(
    data_dir: epath.Path | None, options: ZeroShotOptions, context: Context
) -> dict[str, Task]:
    """Returns the task on SST-2, if its data are in `data_dir`."""
    sets = context.get_or_make('senteval', partial(find_senteval_sets, data_dir))
    name = f'{KIND.name}/{SET}'
    return {name: ZeroShot(name, sets[SET], options)} if SET in sets else {}


def find_nearest_label(queries_QxD: np.ndarray, labels_YxD: np.ndarray) -> np.ndarray:
    """Returns int64[Q]: the index of the label with the largest dot product."""
    return (queries_QxD @ labels_YxD.T).argmax(axis=1)


KIND = TaskKind(
    name='zeroshot',
    find=find_zero_shot,
    options=ZeroShotOptions,
    layout='senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
    folder='senteval/ (its data/downstream)',
)
