"""Representations of two language models on the dev pairs of STS-B, without training."""

from experiment import Experiment
from experiment_flags import GEMMA_3, REPRESENTATIONS, SMOLLM2, SMOLLM2_WITH_BOS

EXPERIMENT = Experiment(
    title='PromptEOL on STS-B dev',
    evaluate='--tasks=sts/STSBenchmark --split=dev --data_dir={data}',
    factors={
        'model': {
            'SmolLM2-135M-Instruct, with BOS': SMOLLM2_WITH_BOS,
            'SmolLM2-135M-Instruct, its own tokens': f'--model={SMOLLM2}',
            'Gemma 3 270M': GEMMA_3,
        },
        'representation': REPRESENTATIONS,
    },
    seeds=(),
    minutes=2.0,
    folders={'data': 'data', 'models': 'models'},
)
