"""Delimiters and pooling: one change at a time from the paper's form, in the quickstart."""

from experiment import Experiment

EXPERIMENT = Experiment(
    title='Delimiters, pooling and attention',
    train=(
        '--config=configs/quickstart.py --config.evaluation.every_steps=0 '
        '--config.checkpoint.every_steps=100000 --config.checkpoint.keep_latest=1'
    ),
    evaluate=(
        '--tasks=codesearch/python_source,probe/TREC,sts/STSBenchmark --data_dir={data} '
        '--baselines=none'
    ),
    factors={
        'form': {
            'x in [ ], y in { } (the paper)': '--config.tokenizer.closing=own',
            'y in { ] (the quickstart)': '',
            'y in [ ], as x': '--config.tokenizer.closing=same',
            'mean pooling': '--config.model.pooling=mean',
            'closing delimiter, bidirectional': '--config.model.causal=False',
            'mean pooling, bidirectional': (
                '--config.model.pooling=mean --config.model.causal=False'
            ),
        }
    },
    minutes=0.6,
)
