"""Which texts of a batch are no negatives: equal texts, and those above a margin."""

from experiment import Experiment

EXPERIMENT = Experiment(
    title='Masks of false negatives',
    train=(
        '--config=configs/quickstart.py --config.evaluation.every_steps=0 '
        '--config.checkpoint.every_steps=100000 --config.checkpoint.keep_latest=1'
    ),
    evaluate=(
        '--tasks=codesearch/python_source,probe/TREC,sts/STSBenchmark --data_dir={data} '
        '--baselines=none'
    ),
    factors={
        'masked': {
            'equal texts (the quickstart)': '',
            'texts equal to the last character': '--config.data.equal_texts=stripped',
            'equal texts, and margin 0.1': '--config.loss.mask_margin=0.1',
            'equal texts, and margin 0': '--config.loss.mask_margin=0.0',
        }
    },
    minutes=0.6,
)
