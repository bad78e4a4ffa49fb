"""Models of text and of code, each on code search and on text, at equal pairs seen: 30,720."""

from experiment import Experiment, Flags
from experiment_flags import QUICKSTART, TEXT

EXPERIMENT = Experiment(
    title='Text models and code models',
    evaluate=(
        '--tasks=codesearch/python_source,retrieval/cosqa,retrieval/scifact,probe/TREC,'
        'sts/STSBenchmark --data_dir={data} --baselines=bm25'
    ),
    factors={
        'trained on': {
            'docstrings and functions (the quickstart)': Flags(train=QUICKSTART),
            'neighbouring pieces of prose': Flags(train=TEXT),
        },
    },
    minutes=1.5,
)
