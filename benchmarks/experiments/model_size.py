"""The width of the model at equal pairs seen: the cpt paper's search and probes rise with size."""

from experiment import Experiment

EXPERIMENT = Experiment(
    title='Size of the model',
    train=(
        '--config=configs/quickstart.py --config.evaluation.every_steps=0 '
        '--config.checkpoint.every_steps=100000 --config.checkpoint.keep_latest=1'
    ),
    evaluate=(
        '--tasks=codesearch/python_source,probe/TREC,sts/STSBenchmark --data_dir={data} '
        '--baselines=none'
    ),
    factors={
        'width': {
            '64': '--config.model.width=64 --config.model.heads=1',
            '128': '--config.model.width=128 --config.model.heads=2',
            '256': '',
            '512': '--config.model.width=512 --config.model.heads=8',
        },
    },
    minutes=0.9,
    x_axis='width',
)
