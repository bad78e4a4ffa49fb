"""What a sentence model keeps of its general ability when it is fine-tuned on code.

`python benchmarks/split_functions.py --input FUNCTIONS --output data/languages` makes the data.
"""

from experiment import Experiment, Flags
from experiment_flags import ONE_CHECKPOINT

MINILM = '{models}/all-MiniLM-L6-v2'
TUNED = (
    f'--config=configs/finetune.py:{MINILM} '
    '--config.data.sources.pairs.path={languages}/train --config.data.sources.pairs.x=docstring '
    '--config.data.sources.pairs.y=code --config.data.sources.pairs.codesearchnet=True '
    '--config.data.sources.pairs.holdout=0 --config.data.max_tokens_y=128 '
    '--config.train.epochs=0.0 --config.train.steps=30 --config.train.batch_pairs=64 '
    f'--config.evaluation.patience=0 --config.checkpoint.keep_best=False {ONE_CHECKPOINT}'
)

EXPERIMENT = Experiment(
    title='Fine-tuning and general ability',
    evaluate=(
        '--tasks=retrieval/cosqa,sts/STSBenchmark,sts/SICK-R,probe/TREC,probe/MRPC '
        '--data_dir={data} --baselines=none'
    ),
    factors={
        'model': {
            'all-MiniLM-L6-v2': Flags(evaluate=f'--model={MINILM}'),
            'fine-tuned on code, learning rate 2e-5': Flags(
                train=f'{TUNED} --config.optimizer.peak_lr=2e-5'
            ),
            'fine-tuned on code, learning rate 2e-4': Flags(
                train=f'{TUNED} --config.optimizer.peak_lr=2e-4'
            ),
        }
    },
    minutes=4.0,
    folders={'data': 'data', 'models': 'models', 'languages': 'data/languages'},
)
