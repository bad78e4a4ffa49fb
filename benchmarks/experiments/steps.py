"""Scores along training. The cpt paper: search and probes rise with steps, STS falls."""

from experiment import Experiment
from experiment_flags import SEARCH_TASKS

EXPERIMENT = Experiment(
    title='Scores along training',
    train=(
        '--config=configs/quickstart.py --config.train.steps=480 '
        '--config.evaluation.every_steps=0 --config.checkpoint.every_steps=30 '
        '--config.checkpoint.keep_every=30'
    ),
    evaluate=SEARCH_TASKS,
    factors={'data': {'docstrings and functions': ''}},
    steps=(30, 120, 240, 480),
    minutes=2.5,
    x_axis='step',
)
