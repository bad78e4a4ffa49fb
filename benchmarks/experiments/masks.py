"""Which texts of a batch are no negatives: equal texts, and those above a margin."""

from experiment import Experiment
from experiment_flags import QUICKSTART, QUICKSTART_TASKS

EXPERIMENT = Experiment(
    title='Masks of false negatives',
    train=QUICKSTART,
    evaluate=QUICKSTART_TASKS,
    factors={
        'masked': {
            'equal texts (the quickstart)': '',
            'texts equal to the last character': '--config.data.equal_texts=stripped',
            'equal texts, and margin 0.1': '--config.loss.mask_margin=0.1',
            'equal texts, and margin 0': '--config.loss.mask_margin=0.0',
        }
    },
    minutes=0.6,
)
