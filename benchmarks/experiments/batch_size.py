"""The batch size at equal pairs seen: 61,440, four times the training data."""

from experiment import Experiment

# Batch size -> chunks in which it is encoded (gradient caching), 256 pairs each at most.
CHUNKS = {64: 1, 256: 1, 1024: 4, 4096: 16}
PAIRS = 61_440

EXPERIMENT = Experiment(
    title='Batch size at equal pairs seen',
    train=(
        '--config=configs/quickstart.py --config.optimizer.warmup_share=0.2 '
        '--config.evaluation.every_steps=0 --config.checkpoint.every_steps=100000 '
        '--config.checkpoint.keep_latest=1 --config.optimizer.peak_lr=0.002'
    ),
    evaluate=(
        '--tasks=codesearch/python_source,retrieval/cosqa,probe/TREC,sts/STSBenchmark '
        '--data_dir={data} --baselines=none'
    ),
    factors={
        'batch': {
            f'{batch:,}': f'--config.train.batch_pairs={batch} '
            f'--config.train.steps={PAIRS // batch} --config.train.encode_chunks={chunks}'
            for batch, chunks in CHUNKS.items()
        },
    },
    minutes=1.0,
    x_axis='batch',
)
