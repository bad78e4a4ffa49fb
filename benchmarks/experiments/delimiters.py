"""Delimiters, pooling and attention: one change at a time from the form of the paper."""

from experiment import Experiment
from experiment_flags import QUICKSTART, QUICKSTART_TASKS

EXPERIMENT = Experiment(
    title='Delimiters, pooling and attention',
    train=QUICKSTART,
    evaluate=QUICKSTART_TASKS,
    factors={
        'form': {
            'x in [ ], y in { } (the paper)': '--config.tokenizer.closing=own',
            'y in { ] (the quickstart)': '',
            'y in [ ], as x': '--config.tokenizer.closing=same',
            'mean pooling': '--config.model.pooling=mean',
            'closing delimiter, bidirectional': '--config.model.causal=False',
            'mean pooling, bidirectional': (
                '--config.model.pooling=mean --config.model.causal=False'
            ),
        }
    },
    minutes=0.6,
)
