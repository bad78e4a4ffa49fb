"""STS and transfer tasks of a language model with PromptEOL and with mean pooling, untrained."""

from experiment import Experiment
from experiment_flags import REPRESENTATIONS, SMOLLM2_WITH_BOS, TRANSFER_TASKS

EXPERIMENT = Experiment(
    title='PromptEOL: STS and transfer without training',
    evaluate=f'{SMOLLM2_WITH_BOS} {TRANSFER_TASKS}',
    factors={'representation': {name: REPRESENTATIONS[name] for name in ('mean', 'prompteol')}},
    seeds=(),
    minutes=25,
    folders={'data': 'data', 'models': 'models'},
)
