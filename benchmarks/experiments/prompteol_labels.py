"""Labels as words: each demonstration is a sentence of one class, with the name of the class as its
word.

The paper takes the sentences from MR's training set, so its folds also test them. The two sentences
here were written for this experiment and are in no data set.
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
            "a sentence of STS-B ('Equestrian')": REPRESENTATIONS['prompteol, demonstration'],
            'two sentences, Positive and Negative': f'--representation=prompteol {GOOD} {BAD}',
            'two sentences, Negative and Positive': f'--representation=prompteol {BAD} {GOOD}',
        }
    },
    seeds=(),
    minutes=8.0,
    folders={'data': 'data', 'models': 'models'},
)
