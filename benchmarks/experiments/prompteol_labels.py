"""Labels as words: the demonstrations of a transfer task are a sentence of each class and its name.

The paper takes the sentences from the training set of MR, so its folds also test them. These are
in no set.
"""

from experiment import Experiment
from experiment_flags import REPRESENTATIONS, SMOLLM2_WITH_BOS

GOOD = "'--demonstration=a warm and funny film with a cast that is a joy to watch .=Positive'"
BAD = "'--demonstration=a long and tired film that has not one idea of its own .=Negative'"

EXPERIMENT = Experiment(
    title='PromptEOL: labels as words',
    evaluate=f'{SMOLLM2_WITH_BOS} --tasks=probe/MR --data_dir={{data}}',
    factors={
        'demonstration': {
            'none': REPRESENTATIONS['prompteol'],
            "of STS-B, and one word ('Equestrian')": REPRESENTATIONS['prompteol, demonstration'],
            'two sentences, Positive and Negative': f'--representation=prompteol {GOOD} {BAD}',
            'two sentences, Negative and Positive': f'--representation=prompteol {BAD} {GOOD}',
        }
    },
    seeds=(),
    minutes=8.0,
    folders={'data': 'data', 'models': 'models'},
)
