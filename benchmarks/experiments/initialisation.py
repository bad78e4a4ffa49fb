"""A pretrained language model, the same architecture from random weights, and the quickstart.

At equal pairs seen: 60 steps of 64 pairs. The processor seconds in the table give the other
comparison: in the time of a run of SmolLM2, the quickstart reads its data many times, which does
not improve it (docs/benchmarks.md).
"""

from experiment import Experiment
from experiment_flags import FROM_SMOLLM2, SMALL_BATCHES

# The architecture of SmolLM2-135M, and as many ids in a tokenizer trained on the pairs.
RANDOM = (
    '--config.tokenizer.vocab_size=49156 --config.tokenizer.normalization=identity '
    '--config.tokenizer.whitespace=prefix --config.model.width=576 --config.model.layers=30 '
    '--config.model.heads=9 --config.model.kv_heads=3 --config.model.hidden=1536 '
    '--config.model.positions=rotary --config.model.norm=rmsnorm '
    '--config.model.activation=swiglu --config.model.bias=False --config.model.init=gpt2 '
    '--config.model.remat=full --config.model.layer_loop=scan'
)
STARTS = {
    'SmolLM2, all parameters': (FROM_SMOLLM2, ('1e-4', '3e-5')),
    'SmolLM2, LoRA of rank 16': (f'{FROM_SMOLLM2} --config.lora.rank=16', ('1e-3', '3e-4')),
    'its architecture, random weights': (RANDOM, ('1e-3', '3e-4')),
    "the quickstart's scratch model": ('', ('2e-3', '4e-3')),
}

EXPERIMENT = Experiment(
    title='Initialisation',
    train=SMALL_BATCHES,
    evaluate='--tasks=codesearch/python_source --baselines=none',
    factors={
        'start and learning rate': {
            f'{start}, {rate}': f'{flags} --config.optimizer.peak_lr={rate}'.strip()
            for start, (flags, rates) in STARTS.items()
            for rate in rates
        }
    },
    minutes=23,
    folders={'models': 'models'},
)
