"""PromptEOL with the weights of the language model in 32, 8 and 4 bits.

Each run has a LoRA adapter that is still zero, after one step with learning rate 0. It is the
language model itself, with its matrices in the storage of `lora.base`.
"""

from experiment import Experiment
from experiment_flags import SMOLLM2

EXPERIMENT = Experiment(
    title='PromptEOL: storage of the weights',
    train=(
        f'--config=configs/prompteol_cse.py:opt-1.3b --config.init_from={SMOLLM2} '
        '--config.data.sources.nli.path={data}/nli/triples_simcse_style.csv '
        '--config.prompt.begin_token=always --config.train.batch_pairs=8 --config.train.steps=1 '
        '--config.data.row_choices=1 --config.model.layer_loop=scan '
        '--config.optimizer.warmup_steps=0 --config.optimizer.peak_lr=0.0'
    ),
    evaluate='--tasks=sts/STSBenchmark --split=dev --data_dir={data}',
    factors={
        'weights': {base: f'--config.lora.base={base}' for base in ('float32', 'int8', 'nf4')}
    },
    seeds=(),
    minutes=4.0,
    folders={'data': 'data', 'models': 'models'},
)
