"""The larger batches of batch_size.py with twice the learning rate."""

from experiment import Experiment
from experiment_flags import SEARCH_TASKS, list_batch_levels, train_equal_pairs

EXPERIMENT = Experiment(
    title='Larger batches with twice the learning rate',
    train=train_equal_pairs(peak_lr=0.004),
    evaluate=SEARCH_TASKS,
    factors={'batch': list_batch_levels(1024, 4096)},
    minutes=1.0,
    x_axis='batch',
)
