"""PromptEOL + CSE with LoRA. The paper: STS rises, the transfer tasks fall.

prompteol_transfer.py has the same scores without CSE.
"""

from experiment import Experiment
from experiment_flags import SMOLLM2, TRANSFER_TASKS

EXPERIMENT = Experiment(
    title='PromptEOL and CSE: STS and transfer',
    train=(
        f'--config=configs/prompteol_cse.py:opt-1.3b --config.init_from={SMOLLM2} '
        '--config.data.sources.nli.path={data}/nli/triples_simcse_style.csv '
        '--config.prompt.begin_token=always --config.train.batch_pairs=64 '
        '--config.data.row_choices=1 --config.model.layer_loop=scan '
        '--config.optimizer.warmup_steps=4 --config.checkpoint.every_steps=20 '
        '--config.checkpoint.keep_latest=1 --config.checkpoint.keep_every=0'
    ),
    evaluate=TRANSFER_TASKS,
    factors={'trained': {'40 steps of 64 triples': '--config.train.steps=40'}},
    seeds=(0, 1, 2),
    minutes=60,
    folders={'data': 'data', 'models': 'models'},
)
