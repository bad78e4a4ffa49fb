"""Representations of two language models on the test pairs of all STS sets, without training."""

from experiment import Experiment
from experiment_flags import GEMMA_3, REPRESENTATIONS, SMOLLM2_WITH_BOS

EXPERIMENT = Experiment(
    title='PromptEOL on all STS sets',
    evaluate='--tasks=sts/* --data_dir={data}',
    factors={
        'model': {
            'SmolLM2-135M-Instruct, with BOS': SMOLLM2_WITH_BOS,
            'Gemma 3 270M': GEMMA_3,
        },
        'representation': REPRESENTATIONS,
    },
    seeds=(),
    minutes=30,
    folders={'data': 'data', 'models': 'models'},
)
