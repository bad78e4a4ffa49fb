"""The batch size at equal pairs seen: 61,440, four times the training data."""

from experiment import Experiment
from experiment_flags import SEARCH_TASKS, list_batch_levels, train_equal_pairs

EXPERIMENT = Experiment(
    title='Batch size at equal pairs seen',
    train=train_equal_pairs(peak_lr=0.002),
    evaluate=SEARCH_TASKS,
    factors={'batch': list_batch_levels(64, 256, 1024, 4096)},
    minutes=1.0,
    x_axis='batch',
)
