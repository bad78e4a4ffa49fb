"""The width of the model at equal pairs seen: the cpt paper's search and probes rise with size."""

from experiment import Experiment
from experiment_flags import QUICKSTART, QUICKSTART_TASKS

EXPERIMENT = Experiment(
    title='Size of the model',
    train=QUICKSTART,
    evaluate=QUICKSTART_TASKS,
    factors={
        'width': {
            '64': '--config.model.width=64 --config.model.heads=1',
            '128': '--config.model.width=128 --config.model.heads=2',
            '256': '',
            '512': '--config.model.width=512 --config.model.heads=8',
        },
    },
    minutes=0.9,
    x_axis='width',
)
