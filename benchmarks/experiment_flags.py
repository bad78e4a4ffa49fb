"""Flags that several experiments share.

The rows of an experiment are found by their commands, so a change here makes its runs new ones.
"""

from collections.abc import Mapping

from experiment import Flags

ONE_CHECKPOINT = '--config.checkpoint.every_steps=100000 --config.checkpoint.keep_latest=1'

# The quickstart with its last checkpoint alone, and what it is tested on.
QUICKSTART = f'--config=configs/quickstart.py --config.evaluation.every_steps=0 {ONE_CHECKPOINT}'
QUICKSTART_TASKS = (
    '--tasks=codesearch/python_source,probe/TREC,sts/STSBenchmark --data_dir={data} '
    '--baselines=none'
)
# The same model on prose: the gutenberg_nltk, novels, rust_book and wikitext2_valid_test folders of
# {data}/text, whose chapters and articles are documents.
TEXT = (
    '--config=configs/small_text.py --config.data.sources.text.path={data}/text '
    "'--config.data.sources.text.separator=^ *(CHAPTER|Chapter|= )' "
    '--config.data.sources.text.holdout=0 --config.train.batch_pairs=256 '
    f'--config.evaluation.every_steps=0 {ONE_CHECKPOINT}'
)
# Those of longer runs.
SEARCH_TASKS = (
    '--tasks=codesearch/python_source,retrieval/cosqa,probe/TREC,sts/STSBenchmark '
    '--data_dir={data} --baselines=none'
)

# Held-out functions as benchmarks/split_functions.py writes them, all of them candidates.
SIX_LANGUAGES = (
    '--tasks=codesearch/go,codesearch/java,codesearch/javascript,codesearch/php,'
    'codesearch/python,codesearch/ruby --data_dir={languages} --candidates=0 --baselines=bm25'
)
# A sentence model, and the same one fine-tuned on the functions that are not held out.
MINILM = '{models}/all-MiniLM-L6-v2'
TUNED_ON_CODE = (
    f'--config=configs/finetune.py:{MINILM} '
    '--config.data.sources.pairs.path={languages}/train --config.data.sources.pairs.x=docstring '
    '--config.data.sources.pairs.y=code --config.data.sources.pairs.codesearchnet=True '
    '--config.data.sources.pairs.holdout=0 --config.data.max_tokens_y=128 '
    '--config.train.epochs=0.0 --config.train.steps=30 --config.train.batch_pairs=64 '
    f'--config.evaluation.patience=0 --config.checkpoint.keep_best=False {ONE_CHECKPOINT}'
)
MINILM_AND_TUNED = {
    'all-MiniLM-L6-v2': Flags(evaluate=f'--model={MINILM}'),
    **{
        f'fine-tuned on code, learning rate {rate}': Flags(
            train=f'{TUNED_ON_CODE} --config.optimizer.peak_lr={rate}'
        )
        for rate in ('2e-5', '2e-4')
    },
}

SMOLLM2 = '{models}/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf'
SMOLLM2_WITH_BOS = f'--model={SMOLLM2} --begin_token=always'
# 60 steps of 64 of the quickstart's pairs, with the paper's delimiters unless a template replaces
# them.
SMALL_BATCHES = (
    '--config=configs/quickstart.py --config.train.batch_pairs=64 --config.train.steps=60 '
    '--config.optimizer.warmup_steps=6 --config.evaluation.every_steps=0 '
    '--config.checkpoint.every_steps=20 --config.checkpoint.keep_latest=1 '
    '--config.tokenizer.closing=own'
)
# Starts training from SmolLM2.
FROM_SMOLLM2 = (
    f'--config.init_from={SMOLLM2} --config.model.remat=full --config.model.layer_loop=scan'
)
GEMMA_3 = '--model={models}/gemma-3-270m/gemma-3-270m-q4_k_m.gguf'

REPRESENTATIONS = {
    **{name: f'--representation={name}' for name in ('last', 'mean', 'prompt', 'prompteol')},
    'prompteol, demonstration': (
        "--representation=prompteol '--demonstration=A jockey riding a horse.=Equestrian'"
    ),
}
TRANSFER_TASKS = (
    '--tasks=sts/STSBenchmark,sts/SICK-R,probe/MR,probe/TREC,probe/MRPC --data_dir={data}'
)


def train_equal_pairs(peak_lr: float) -> str:
    """Returns the flags of runs that differ in the batch size, for a learning rate."""
    return (
        '--config=configs/quickstart.py --config.optimizer.warmup_share=0.2 '
        f'--config.evaluation.every_steps=0 {ONE_CHECKPOINT} '
        f'--config.optimizer.peak_lr={peak_lr}'
    )


def list_batch_levels(*batches: int, pairs: int = 61_440) -> Mapping[str, str]:
    """Returns the flags of each batch size: as many steps as `pairs` are, and chunks of at most 256
    pairs (gradient caching).
    """
    return {
        f'{batch:,}': f'--config.train.batch_pairs={batch} '
        f'--config.train.steps={pairs // batch} '
        f'--config.train.encode_chunks={max(1, batch // 256)}'
        for batch in batches
    }
