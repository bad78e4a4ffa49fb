"""Representations of two language models on the test pairs of all STS sets, without training."""

from experiment import Experiment

EXPERIMENT = Experiment(
    title='PromptEOL on all STS sets',
    evaluate='--tasks=sts/* --data_dir={data}',
    factors={
        'model': {
            'SmolLM2-135M-Instruct, with BOS': (
                '--model={models}/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf '
                '--begin_token=always'
            ),
            'Gemma 3 270M': '--model={models}/gemma-3-270m/gemma-3-270m-q4_k_m.gguf',
        },
        'representation': {
            'last': '--representation=last',
            'mean': '--representation=mean',
            'prompt': '--representation=prompt',
            'prompteol': '--representation=prompteol',
            'prompteol, demonstration': (
                "--representation=prompteol '--demonstration=A jockey riding a horse.=Equestrian'"
            ),
        },
    },
    seeds=(),
    minutes=30,
    folders={'data': 'data', 'models': 'models'},
)
