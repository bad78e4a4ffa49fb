r"""Fine-tunes an embedding model here and in sentence-transformers, and compares quality and speed.

Example:
  python benchmarks/finetune_race.py --model models/all-MiniLM-L6-v2 --json finetune_race.json

Both sides start from the model and train on the same pairs in the same order: docstrings and
functions of the installed packages, or the pairs of --pairs. Both have the same loss (one
direction, constant scale 20), AdamW without weight decay, a linear warm-up over a tenth of the
steps and a linear decay to 0, no dropout and float32. Each seed is a new order of the pairs. The
score is the MRR of held-out pairs, computed from the vectors of each side by the same function.
With --beir FOLDER, both sides train on the relevant documents of the queries in qrels/train.tsv,
and the score is nDCG@10 on qrels/test.tsv:

  python benchmarks/finetune_race.py --model models/all-MiniLM-L6-v2 \
      --beir data/retrieval/scifact --max_tokens 256 --steps 14 --seeds 1

`ratio` in the JSON is pairs per processor second, ours over theirs, the median over the seeds;
`mrr_ours`, `mrr_theirs` and `mrr_start` (or `ndcg_...`) are the scores after and before training.
`packing` is the part of the ratio that packing explains: computed tokens per pair, theirs over
ours.
"""

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from cpt_jax.benchmark_data.beir import load_collection
from cpt_jax.cli.program import run_program
from cpt_jax.data.pairs import Pair, spread_indices
from cpt_jax.embed.function import Embed
from cpt_jax.evals.tasks.retrieval import Retrieval
from cpt_jax.runs.config_file import load_config
from cpt_jax.training.contrastive import compute_heldout_scores
from turns import Moment, call_in_process, count_cores


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the race; the fields are documented by the flags of their name."""

    model: str
    pairs: str
    beir: str
    batch: int
    steps: int
    peak_lr: float
    max_tokens: int
    heldout: int
    seeds: int

    @property
    def warmup_steps(self) -> int:
        return self.steps // 10

    @property
    def metric(self) -> str:
        return 'ndcg' if self.beir else 'mrr'


def measure(settings: Settings) -> dict[str, Any]:
    """Returns the results of both sides; `print_table` prints them."""
    sides: dict[str, list[dict[str, Any]]] = {'ours': [], 'theirs': []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, heldout = read_pairs(settings)
        write_pairs(folder / 'pairs.jsonl', pairs)
        for seed in tqdm(range(settings.seeds), desc='seeds', disable=None):
            arguments = settings, folder, heldout, seed
            sides['ours'].append(call_in_process(train_here, *arguments))
            sides['theirs'].append(call_in_process(train_there, *arguments))
    rates = {
        name: [run['pairs'] / run['cpu_seconds'] for run in runs] for name, runs in sides.items()
    }
    metric = settings.metric
    computed = {name: sum(run['computed'] for run in runs) for name, runs in sides.items()}
    return {
        'ratio': statistics.median(rates['ours']) / statistics.median(rates['theirs']),
        'packing': computed['theirs'] / computed['ours'],
        f'{metric}_ours': [run['end'] for run in sides['ours']],
        f'{metric}_theirs': [run['end'] for run in sides['theirs']],
        f'{metric}_start': sides['ours'][0]['start'],
        f'{metric}_start_theirs': sides['theirs'][0]['start'],
        'pairs_per_cpu_second': rates,
        'settings': dataclasses.asdict(settings) | {'cores': count_cores()},
        'sides': sides,
    }


def print_table(result: Mapping[str, Any]) -> None:
    """Prints a row per side and seed, and the comparison."""
    metric = 'ndcg' if result['settings']['beir'] else 'mrr'
    print(f'{"":<10}{"seed":>5}{metric:>9}{"pairs/CPU s":>14}{"seconds":>10}{"tokens/pair":>13}')
    for name, runs in result['sides'].items():
        for seed, run in enumerate(runs):
            print(
                f'{name:<10}{seed:>5}{run["end"]:>9.4f}'
                f'{run["pairs"] / run["cpu_seconds"]:>14.2f}{run["seconds"]:>10.1f}'
                f'{run["computed"] / run["pairs"]:>13.1f}'
            )
    ours, theirs = (statistics.mean(result[f'{metric}_{side}']) for side in ('ours', 'theirs'))
    starts = result[f'{metric}_start'], result[f'{metric}_start_theirs']
    print(
        f'{metric} at the start {starts[0]:.4f} here, {starts[1]:.4f} there; '
        f'mean after training {ours:.4f} here, {theirs:.4f} there\n'
        f'pairs per processor second: {result["ratio"]:.2f} x; computed tokens per pair: '
        f'{1 / result["packing"]:.2f} x'
    )


def read_pairs(settings: Settings) -> tuple[list[Pair], list[Pair]]:
    """Returns the pairs to train on, and the held-out pairs, [] with --beir."""
    if settings.beir:
        return read_beir_pairs(epath.Path(settings.beir)), []
    from cpt_jax.data.sources.jsonl import JsonlSource
    from cpt_jax.data.sources.python_source import PythonSource

    def load(split: str):
        if settings.pairs:
            return JsonlSource(settings.pairs, split, holdout=0.05)
        return PythonSource(split)

    train, heldout = load('train'), load('heldout')
    chosen = spread_indices(len(heldout), settings.heldout)
    return [train[i] for i in range(len(train))], [heldout[int(i)] for i in chosen]


def read_beir_pairs(folder: epath.Path) -> list[Pair]:
    """Returns each training query of a BEIR folder with each of its relevant documents."""
    collection = load_collection(folder, 'train')
    queries = dict(zip(collection.query_ids, collection.queries, strict=True))
    documents = collection.documents.load_texts_at(collection.positions.values())
    return [
        Pair(queries[query], documents[collection.positions[document]])
        for query, grades in collection.qrels.items()
        for document, grade in grades.items()
        if grade > 0
    ]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Writes pairs as JSON lines."""
    with path.open('w', encoding='utf-8') as file:
        file.writelines(json.dumps({'x': pair.x, 'y': pair.y}) + '\n' for pair in pairs)


def compute_score(settings: Settings, heldout: Sequence[Pair], embed: Embed) -> float:
    """Returns the score of an embedding function; see the description of this program."""
    if settings.beir:
        return Retrieval('retrieval/race', epath.Path(settings.beir)).run(embed).main_score
    return compute_heldout_scores(embed, heldout, lambda: None)['heldout_mrr']


def make_our_config(settings: Settings, folder: Path, seed: int) -> dict[str, Any]:
    """Returns configs/finetune.py with the settings of the race."""
    config = load_config(f'configs/finetune.py:{settings.model}')
    config['seed'] = seed
    source = {'kind': 'jsonl', 'weight': 1.0, 'path': str(folder / 'pairs.jsonl')}
    config['data'] |= {
        'sources': {'pairs': source},
        'max_tokens_x': settings.max_tokens,
        'max_tokens_y': settings.max_tokens,
    }
    config['model']['dtype'] = 'float32'
    config['loss']['symmetric'] = False
    config['optimizer'] |= {
        'peak_lr': settings.peak_lr,
        'warmup_share': 0.0,
        'warmup_steps': settings.warmup_steps,
        'weight_decay': 0.0,
    }
    config['train'] |= {'epochs': 0.0, 'steps': settings.steps, 'batch_pairs': settings.batch}
    config['evaluation'] |= {'times': 0, 'every_steps': 0, 'patience': 0}
    config['checkpoint']['keep_best'] = False
    return config


def train_here(
    settings: Settings, folder: Path, heldout: Sequence[Pair], seed: int
) -> dict[str, Any]:
    """Trains with the step of launch/train.py; returns scores, times and counts without the first
    step.
    """
    import jax

    from cpt_jax.cli.program import use_compilation_cache
    from cpt_jax.data.batch import make_abstract_batch, place_batch
    from cpt_jax.runtime.allocator import keep_freed_memory
    from cpt_jax.training.contrastive import make_embedder
    from cpt_jax.training.setup import set_up
    from cpt_jax.training.start import make_starting_state
    from cpt_jax.training.step import StepPrograms

    use_compilation_cache()
    keep_freed_memory()
    run = set_up(make_our_config(settings, folder, seed), folder / 'run')
    order = [run.indices[step].pairs for step in range(settings.steps)]
    np.save(folder / f'order-{seed}.npy', np.stack(order))
    embedder = None

    def score(params) -> float:
        nonlocal embedder
        embedder = embedder or make_embedder(params, run.held_out)
        embedder.encoder = params.encoder
        return compute_score(settings, heldout, embedder)

    with jax.set_mesh(run.mesh):
        _, state = make_starting_state(run, NoCheckpoints())
    start_score = score(state.all_params)  # outside: a search has a mesh of its own
    with jax.set_mesh(run.mesh):
        upcoming = run.iterate_batches_after(0)
        programs = StepPrograms(run)
        # Compile all row counts now, so that no timed step includes a compilation.
        for rows in (*run.layout.smaller_row_counts, run.layout.rows):
            smaller = dataclasses.replace(run.layout, rows=rows)
            programs(state, make_abstract_batch(smaller, run.mesh))
        computed, losses = 0, []
        for step in range(settings.steps):
            batch = place_batch(next(upcoming), run.mesh, run.layout)
            state, metrics = programs(state, batch)(state, batch)
            losses.append(float(metrics['loss']))  # waits for the step
            if step == 0:
                start = Moment.now()
            else:
                computed += batch.tokens_JxRxS.size
        end = Moment.now()
    end_score = score(state.all_params)
    return start.until(end) | {
        'start': start_score,
        'end': end_score,
        'pairs': settings.batch * (settings.steps - 1),
        'computed': computed,
        'loss': statistics.mean(losses),
    }


class NoCheckpoints:
    """The checkpoints of a new run."""

    def restore(self, abstract: Any) -> None:
        del abstract


def train_there(
    settings: Settings, folder: Path, heldout: Sequence[Pair], seed: int
) -> dict[str, Any]:
    """Trains with SentenceTransformerTrainer on the batches of `train_here`; returns the same."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import PrinterCallback, TrainerCallback

    torch.set_num_threads(count_cores())
    torch.manual_seed(seed)
    model = SentenceTransformer(settings.model, device='cpu')
    model.max_seq_length = settings.max_tokens
    for module in model.modules():  # our models have no dropout unless model.dropout is set
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = [json.loads(line) for line in (folder / 'pairs.jsonl').read_text('utf-8').splitlines()]
    order_SxB = np.load(folder / f'order-{seed}.npy')

    def score() -> float:
        encode = {'x': model.encode_query, 'y': model.encode_document}
        return compute_score(
            settings,
            heldout,
            lambda texts, side, **_: encode[side](list(texts), normalize_embeddings=True),
        )

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends: list[Moment] = []

        def on_step_end(self, *arguments, **keywords) -> None:
            self.ends.append(Moment.now())

    def make_sampler(dataset, batch_size: int, **keywords) -> BatchSampler:
        return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=True)

    start_score = score()
    x, y = ([rows[i][side] for i in order_SxB.ravel()] for side in ('x', 'y'))
    # A run here puts the model's prompts before texts; their trainer only those that it is given.
    prompts = {
        column: model.prompts[name]
        for column, name in (('anchor', 'query'), ('positive', 'document'))
        if model.prompts.get(name)
    }
    arguments = SentenceTransformerTrainingArguments(
        prompts=prompts or None,
        output_dir=str(folder / 'trainer'), max_steps=settings.steps,
        per_device_train_batch_size=settings.batch, use_cpu=True,
        learning_rate=settings.peak_lr, lr_scheduler_type='linear',
        warmup_steps=settings.warmup_steps, adam_beta2=0.999, weight_decay=0.0, seed=seed,
        batch_sampler=make_sampler, dataloader_num_workers=0, report_to='none',
        eval_strategy='no', save_strategy='no', logging_strategy='no', disable_tqdm=True,
    )  # fmt: skip
    clock = Clock()
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({'anchor': x, 'positive': y}),
        loss=MultipleNegativesRankingLoss(model, scale=20.0),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(trainer.model_card_callback_class)
    loss = trainer.train().training_loss
    # The texts of each side of a batch are padded to the longest of them.
    tokens = model.tokenizer(x + y, truncation=True, max_length=settings.max_tokens)['input_ids']
    lengths_2xSxB = np.array(list(map(len, tokens))).reshape(2, *order_SxB.shape)
    return clock.ends[0].until(clock.ends[-1]) | {
        'start': start_score,
        'end': score(),
        'pairs': settings.batch * (settings.steps - 1),
        'computed': int(lengths_2xSxB[:, 1:].max(-1).sum()) * settings.batch,
        'loss': loss,
    }


def main() -> None:
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Settings)}
    result = measure(Settings(**values))
    print_table(result)
    if flags.FLAGS.json:
        Path(flags.FLAGS.json).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    flags.DEFINE_string('model', None, 'Directory of the embedding model.', required=True)
    flags.DEFINE_string(
        'pairs',
        '',
        'A .jsonl file of {"x": ..., "y": ...}. Default: the docstrings and functions of '
        'installed packages.',
    )
    flags.DEFINE_string('beir', '', 'Folder of a BEIR collection to train on and to score.')
    flags.DEFINE_integer('batch', 64, 'Pairs in a batch.')
    flags.DEFINE_integer('steps', 60, 'Training steps.')
    flags.DEFINE_float('peak_lr', 2e-5, 'Learning rate after the warm-up.')
    flags.DEFINE_integer('max_tokens', 128, 'Maximum tokens of a text, special tokens included.')
    flags.DEFINE_integer('heldout', 300, 'Held-out pairs to score.')
    flags.DEFINE_integer('seeds', 3, 'Orders of the pairs; each side trains once on each.')
    flags.DEFINE_string('json', '', 'Also write the results to this file.')
    run_program(main)
