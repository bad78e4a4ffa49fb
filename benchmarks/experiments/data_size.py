"""The number of distinct training pairs at equal pairs seen, 30,720.

Fewer pairs are those of fewer packages (`holdout`). All models are tested on the same functions.
"""

from experiment import Experiment
from experiment_flags import QUICKSTART, QUICKSTART_TASKS

# Distinct pairs with the pinned packages on Python 3.11 -> fraction of the packages left out.
HOLDOUT = {'2,478': 0.7, '5,082': 0.5, '14,986': 0.1}

EXPERIMENT = Experiment(
    title='Distinct training pairs',
    train=QUICKSTART,
    evaluate=QUICKSTART_TASKS,
    factors={
        'pairs': {
            label: '' if holdout == 0.1 else f'--config.data.sources.python.holdout={holdout}'
            for label, holdout in HOLDOUT.items()
        },
    },
    minutes=0.6,
    x_axis='pairs',
)
