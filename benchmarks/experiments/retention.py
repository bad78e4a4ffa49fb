"""What a sentence model keeps of its general ability when it is fine-tuned on code.

tuned_languages.py has what it gains, and the command that makes the training data.
"""

from experiment import Experiment
from experiment_flags import MINILM_AND_TUNED

EXPERIMENT = Experiment(
    title='Fine-tuning and general ability',
    evaluate=(
        '--tasks=retrieval/cosqa,sts/STSBenchmark,sts/SICK-R,probe/TREC,probe/MRPC '
        '--data_dir={data} --baselines=none'
    ),
    factors={'model': MINILM_AND_TUNED},
    minutes=4.0,
    folders={'data': 'data', 'models': 'models', 'languages': 'data/languages'},
)
