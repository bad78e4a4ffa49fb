"""The demonstration that a search chose on dev pairs, on the test pairs of STS-B.

`python launch/demonstrations.py --model MODEL --begin_token=always --representation=prompteol
--candidates icl_examples.txt --limit=20 --pairs=300 --data_dir data` is the search.
"""

from experiment import Experiment
from experiment_flags import REPRESENTATIONS, SMOLLM2_WITH_BOS

EXPERIMENT = Experiment(
    title='PromptEOL: the demonstration of a search',
    evaluate=f'{SMOLLM2_WITH_BOS} --tasks=sts/STSBenchmark --data_dir={{data}}',
    factors={
        'demonstration': {
            'none': REPRESENTATIONS['prompteol'],
            "of the paper for OPT-2.7B ('Equestrian')": REPRESENTATIONS['prompteol, demonstration'],
            "best of the search ('Music')": (
                "--representation=prompteol '--demonstration=A man is playing a large flute.=Music'"
            ),
        }
    },
    seeds=(),
    minutes=2.0,
    folders={'data': 'data', 'models': 'models'},
)
