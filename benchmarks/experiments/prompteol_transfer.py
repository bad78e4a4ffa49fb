"""STS and transfer tasks of a language model with PromptEOL and with mean pooling, untrained."""

from experiment import Experiment

EXPERIMENT = Experiment(
    title='PromptEOL: STS and transfer without training',
    evaluate=(
        '--model={models}/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf '
        '--begin_token=always '
        '--tasks=sts/STSBenchmark,sts/SICK-R,probe/MR,probe/TREC,probe/MRPC --data_dir={data}'
    ),
    factors={
        'representation': {
            'mean': '--representation=mean',
            'prompteol': '--representation=prompteol',
        }
    },
    seeds=(),
    minutes=25,
    folders={'data': 'data', 'models': 'models'},
)
