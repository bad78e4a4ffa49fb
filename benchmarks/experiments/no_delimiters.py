"""A language model with the paper's delimiters around its texts, and without any.

Without them the vector is the state at the last token of the text. The runs with delimiters are
those of initialisation.py.
"""

from experiment import Experiment
from experiment_flags import FROM_SMOLLM2, SMALL_BATCHES

EXPERIMENT = Experiment(
    title='Delimiters around the texts of a language model',
    train=f'{SMALL_BATCHES} {FROM_SMOLLM2} --config.optimizer.peak_lr=1e-4',
    evaluate='--tasks=codesearch/python_source,sts/STSBenchmark --data_dir={data} --baselines=none',
    factors={
        'delimiters': {
            'x in [ ], y in { } (the paper)': '',
            'none': '--config.prompt.template={text}',
        }
    },
    minutes=30.0,
    folders={'data': 'data', 'models': 'models'},
)
