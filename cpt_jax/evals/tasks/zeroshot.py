"""Classification by the nearest text that names a label, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from etils import epath

from cpt_jax.benchmark_data.senteval import SIDE, SentEvalSet, find_sets
from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import Options, option
from cpt_jax.evals.report.embedding_map import map_of
from cpt_jax.evals.task import Context, Kind, Result, Task, library_versions
from cpt_jax.evals.tasks.knn import majority, normalize_rows
from cpt_jax.runtime.errors import UserError

WORDS = 'negative', 'positive'  # label 0 and label 1
TEMPLATE = 'this is an example of a {} movie review.'  # of the cpt paper
SET = 'SST2'


@dataclass(frozen=True)
class ZeroShotOptions(Options):
    """Options of zeroshot/*."""

    label_words: Sequence[str] = option(WORDS, 'Of zeroshot/*: the labels in words, label 0 first.')
    label_template: str = option(
        TEMPLATE, 'Of zeroshot/*: the sentence that describes a label; {} is its word.'
    )


@dataclass(frozen=True)
class ZeroShot(Task):
    """Test sentences get the label whose name is nearest, as a word alone and in a sentence that
    describes it.

    Attributes:
      name: name of the task, 'zeroshot/SST2'.
      data: labelled sentences with the part test.
      options: options of the kind.
    """

    name: str
    data: SentEvalSet
    options: ZeroShotOptions = ZeroShotOptions()

    def __post_init__(self) -> None:
        words, classes = self.options.label_words, len(self.data.layout.classes)
        if len(words) != classes or not all(word.strip() for word in words):
            raise UserError(
                f'--label_words {",".join(words)}: {classes} words are needed, label 0 first'
            )
        if '{}' not in self.options.label_template:
            raise UserError(
                f'--label_template {self.options.label_template!r}: {{}} must stand where the word '
                f'of the label belongs'
            )

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, fingerprint_files(self.data.files))

    def run(self, embed: Embed) -> Result:
        test = self.data.part('test')
        test_QxD = normalize_rows(*self.data.vectors(embed, 'test'))
        words, template = self.options.label_words, self.options.label_template
        forms = {
            'words': list(words),
            'description': [template.replace('{}', word) for word in words],
        }
        # The paper does not say which delimiters a label gets: those of the sentences, or those of
        # what sentences look for.
        sides = {'': SIDE, '_as_document': 'y'}
        metrics = {}
        for ending, side in sides.items():
            for form, labels in forms.items():
                predicted_Q = nearest(test_QxD, normalize_rows(embed_texts(embed, labels, side)))
                metrics[f'accuracy_{form}{ending}'] = float(np.mean(predicted_Q == test.labels))
        return Result(
            metric='accuracy_description',
            metrics=metrics,
            n=len(test.labels),
            settings={
                'protocol': 'the label with the largest cosine; of equal ones the first',
                'labels': forms,
                'label_side': f'{SIDE}; y in the metrics that end in as_document',
                'libraries': library_versions(),
                **self.data.facts(),
            },
            baselines={'majority': dict.fromkeys(metrics, majority(test.labels, test.labels))},
            counted='sentences',
            map=map_of(self.data, embed),
        )


def find_zero_shot(
    data_dir: epath.Path | None, options: ZeroShotOptions, context: Context
) -> dict[str, Task]:
    """Returns the task on SST-2, where its data are in `data_dir`."""
    sets, name = context.share('senteval', partial(find_sets, data_dir)), f'{KIND.name}/{SET}'
    return {name: ZeroShot(name, sets[SET], options)} if SET in sets else {}


def nearest(queries_QxD: np.ndarray, labels_CxD: np.ndarray) -> np.ndarray:
    """int64[Q]: the row of `labels_CxD` with the largest dot product."""
    return (queries_QxD @ labels_CxD.T).argmax(axis=1)


KIND = Kind(
    name='zeroshot',
    find=find_zero_shot,
    options=ZeroShotOptions,
    layout='senteval/SST/binary/ with sentiment-train, -dev and -test (SentEval)',
    folder='senteval/ (its data/downstream)',
)
