"""What a sentence model gains on code when it is fine-tuned on it: functions of held-out files.

`python benchmarks/split_functions.py --input FUNCTIONS --output data/languages` makes the data. The
trainings are those of retention.py.
"""

from experiment import Experiment
from experiment_flags import MINILM_AND_TUNED, SIX_LANGUAGES

EXPERIMENT = Experiment(
    title='Fine-tuning and its own domain',
    evaluate=SIX_LANGUAGES,
    factors={'model': MINILM_AND_TUNED},
    minutes=4.0,
    folders={'models': 'models', 'languages': 'data/languages'},
)
