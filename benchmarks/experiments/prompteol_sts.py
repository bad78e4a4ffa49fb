"""Representations of two language models on the dev pairs of STS-B, without training."""

from experiment import Experiment

EXPERIMENT = Experiment(
    title='PromptEOL on STS-B dev',
    evaluate='--tasks=sts/STSBenchmark --split=dev --data_dir={data}',
    factors={
        'model': {
            'SmolLM2-135M-Instruct, with BOS': (
                '--model={models}/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf '
                '--begin_token=always'
            ),
            'SmolLM2-135M-Instruct, its own tokens': (
                '--model={models}/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf'
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
    minutes=2.0,
    folders={'data': 'data', 'models': 'models'},
)
