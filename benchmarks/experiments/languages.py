"""Code search in six languages, for models of all six, of Python alone, and of text.

`python benchmarks/split_functions.py --input FUNCTIONS --output data/languages` makes the data.
"""

from experiment import Experiment, Flags
from experiment_flags import ONE_CHECKPOINT, SIX_LANGUAGES, TEXT

FUNCTIONS = (
    '--config=configs/small_pairs.py --config.data.sources.pairs.x=docstring '
    '--config.data.sources.pairs.y=code --config.data.sources.pairs.codesearchnet=True '
    f'--config.data.sources.pairs.holdout=0 --config.evaluation.every_steps=0 {ONE_CHECKPOINT} '
    '--config.data.sources.pairs.path={languages}/train'
)

EXPERIMENT = Experiment(
    title='Code search in six languages',
    evaluate=SIX_LANGUAGES,
    factors={
        'trained on': {
            'six languages': Flags(train=FUNCTIONS),
            'Python': Flags(train=f'{FUNCTIONS}/python.jsonl'),
            'neighbouring pieces of prose': Flags(train=TEXT),
        },
    },
    minutes=1.5,
    folders={'data': 'data', 'languages': 'data/languages'},
)
