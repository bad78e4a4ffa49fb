r"""Measures pairs per second in training, compared with sentence-transformers' own trainer.

Our side runs packed and padded. All sides compute in float32 on this machine's CPU.

Example:
  python benchmarks/train_throughput.py --batch 64 --max_tokens 256 --rounds 3 \
      --json train_throughput.json

All sides start from the same weights of a GPT-2 architecture and train on the same real pairs in
the same batches, truncated to the same length: docstrings and functions of the installed packages,
or the pairs of --pairs. Our side is the step of launch/train.py with its input pipeline. The other
side is SentenceTransformerTrainer with MultipleNegativesRankingLoss and default settings, without
evaluation, saving and logging. Both sides clip gradients and use AdamW. Both compute the loss only
in the direction from x to y; two directions cost as much as one. With --lengths equal every text
has exactly --max_tokens tokens, so there is no padding to save (try --max_tokens 128). `ratio` in
the JSON is our median rate, packed, over that of sentence-transformers.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from beside import ModelSettings, define_flags, run_and_report
from cpt_jax.cli.program import run_program
from cpt_jax.runs.config_file import load_config
from turns import Moment, call_in_process, compute_spread, count_cores, take_turns

ROOT = Path(__file__).resolve().parents[1]

PEER = 'sentence-transformers'
PACKED, PADDED = 'ours, packed', 'ours, padded'
MAX_DIFFERENCE = 1e-4  # of the initial vectors of both sides for the same texts


@dataclasses.dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of model and batches; the fields are documented by the flags of their name."""

    pairs: str
    lengths: str
    batch: int
    steps: int


def main() -> None:
    run_and_report(Settings, measure, print_table)


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """Returns the results of all sides; `print_table` prints them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        difference = call_in_process(prepare, settings, folder, rounds)
        ours = {
            name: functools.partial(run_our_turn, settings, folder, name == PACKED)
            for name in (PACKED, PADDED)
        }
        theirs = {PEER: functools.partial(run_their_turn, settings, folder)}
        turns = take_turns({'ours': ours, 'theirs': theirs}, rounds)
    sides = {name: summarize(side) for name, side in turns.items()}
    rates = {name: side['pairs_per_second']['median'] for name, side in sides.items()}
    return {
        'ratio': rates[PACKED] / rates[PEER],
        'padded_ratio': rates[PADDED] / rates[PEER],
        'packed_over_padded': rates[PACKED] / rates[PADDED],
        'vectors_differ_by': difference,
        'settings': dataclasses.asdict(settings) | {'rounds': rounds, 'cores': count_cores()},
        'sides': sides,
    }


def summarize(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns the results of one side from its turns."""
    total = {
        key: sum(turn[key] for turn in turns)
        for key in ('pairs', 'tokens', 'computed', 'dropped', 'cpu_seconds')
    }
    return {
        'pairs_per_second': compute_spread([turn['pairs'] / turn['seconds'] for turn in turns]),
        'tokens_per_second': compute_spread([turn['tokens'] / turn['seconds'] for turn in turns]),
        'pairs_per_cpu_second': total['pairs'] / total['cpu_seconds'],
        'useful_share': total['tokens'] / total['computed'],
        'dropped_pairs': total['dropped'],
        'first_loss': turns[0]['first_loss'],
        'loss': turns[-1]['loss'],
        'turns': list(turns),
    }


def print_table(result: dict[str, Any]) -> None:
    """Prints a row per side, and the difference of the vectors."""
    print(
        f'{"":<24}{"pairs/s":>10}{"min..max":>18}{"tokens/s":>11}{"pairs/CPU s":>13}{"useful":>9}'
        f'{"dropped":>9}{"loss":>9}{"ratio":>9}'
    )
    for name, side in result['sides'].items():
        rate, tokens = side['pairs_per_second'], side['tokens_per_second']['median']
        ratio = rate['median'] / result['sides'][PEER]['pairs_per_second']['median']
        print(
            f'{name:<24}{rate["median"]:>10.2f}{rate["min"]:>9.2f}..{rate["max"]:<7.2f}'
            f'{tokens:>11,.0f}{side["pairs_per_cpu_second"]:>13.2f}'
            f'{side["useful_share"]:>9.1%}{side["dropped_pairs"]:>9.0f}{side["first_loss"]:>9.4f}'
            f'{ratio:>7.2f} x'
        )
    print(f'packed over padded: {result["packed_over_padded"]:.2f} x')
    print(
        f'maximum difference of the vectors of both sides {result["vectors_differ_by"]:.1e}; '
        f'losses are those of the first batch'
    )


def make_our_config(settings: Settings, folder: Path, packed: bool) -> dict[str, Any]:
    """Returns configs/base.py with the settings, and with the optimizer defaults of the other side:
    constants of AdamW, no weight decay.
    """
    config = load_config(ROOT / 'configs/base.py')
    source = {'kind': 'jsonl', 'weight': 1.0, 'path': str(folder / 'pairs.jsonl')}
    config['tokenizer']['path'] = str(folder / 'tokenizer.json')
    config['data'] |= {
        'max_tokens_x': settings.max_tokens,
        'max_tokens_y': settings.max_tokens,
        'sources': {'pairs': source},
        'row_length': settings.max_tokens,
        'packed': packed,
    }
    config['model'] |= {
        'width': settings.width,
        'layers': settings.layers,
        'heads': settings.heads,
        'max_length': settings.max_tokens,
    }
    # With 'passthrough', vectors of an untrained encoder depend on their text.
    config['model'] |= {'init': 'passthrough', 'remat': 'none', 'dtype': 'float32'}
    # As in MultipleNegativesRankingLoss: a scale of 20, one direction.
    config['loss'] |= {'initial_temperature': 0.05, 'symmetric': False}
    config['optimizer'] |= {
        'peak_lr': 5e-5,
        'warmup_steps': 0,
        'final_share': 1.0,
        'weight_decay': 0.0,
        'b2': 0.999,
    }
    config['train']['batch_pairs'] = settings.batch
    return config


def prepare(settings: Settings, folder: Path, rounds: int) -> float:
    """Writes the inputs of all sides to a folder.

    The files are pairs.jsonl, tokenizer.json, twin/, order.npy (pairs of the batches of all turns)
    and lengths.npy (tokens of each text).

    Returns:
      The maximum difference between the initial vectors of both sides for the same texts.

    Raises:
      ValueError: the difference exceeds MAX_DIFFERENCE.
    """
    from cpt_jax.data.token_reader import sample_lengths
    from cpt_jax.text.tokenizer import load_tokenizer
    from cpt_jax.training.contrastive import make_embedder
    from cpt_jax.training.setup import set_up
    from gpt2_twin import load_twin, save_twin, train_bpe

    pairs = read_pairs(settings.pairs)
    train_bpe(
        (text for pair in pairs for text in pair), settings.vocab_size, folder / 'tokenizer.json'
    )
    if settings.lengths == 'equal':
        tokenizer = load_tokenizer(folder / 'tokenizer.json')
        pairs = [
            tuple(repeat_to_length(text, settings.max_tokens, tokenizer) for text in pair)
            for pair in pairs
        ]
    with (folder / 'pairs.jsonl').open('w') as file:
        file.writelines(json.dumps({'x': x, 'y': y}) + '\n' for x, y in pairs)

    run = set_up(make_our_config(settings, folder, True), folder / 'run')
    count = (1 + rounds) * (1 + settings.steps)
    np.save(folder / 'order.npy', np.stack([run.indices[step].pairs for step in range(count)]))
    np.save(folder / 'lengths.npy', sample_lengths(run.reader, 0, len(pairs)))
    state = make_starting_state(run)
    save_twin(state.params.encoder, run.tokenizer, settings.max_tokens, folder / 'twin')
    texts = [text for pair in pairs[:32] for text in pair]
    theirs = load_twin(folder / 'twin', count_cores()).encode(texts, show_progress_bar=False)
    ours = make_embedder(state.params, run.held_out)(texts, 'y')
    difference = float(np.abs(ours - theirs).max())
    if difference > MAX_DIFFERENCE:
        raise ValueError(f'the models of both sides differ: vectors by up to {difference:.1e}')
    return difference


def read_pairs(path: str) -> list[tuple[str, str]]:
    """Returns x and y of all pairs of a file, or of installed packages if `path` is empty."""
    from cpt_jax.data.sources.jsonl import JsonlSource
    from cpt_jax.data.sources.python_source import PythonSource

    source = JsonlSource(path, 'train') if path else PythonSource('train')
    return [(pair.x, pair.y) for pair in map(source.__getitem__, range(len(source)))]


def repeat_to_length(text: str, tokens: int, tokenizer) -> str:
    """Returns the text, doubled until it has at least this many tokens; the tokenizer truncates."""
    while tokenizer.count([text])[0] < tokens:
        text = f'{text}\n{text}'
    return text


def make_starting_state(run):
    """Returns an initial state in which the embeddings of x's delimiters equal those of y's.

    The twin has only the delimiters of y, so both sides start at the same loss.
    """
    import jax

    with jax.set_mesh(run.mesh):
        state = jax.jit(run.init)()
        table = state.params.encoder.token_embedding
        values_VxD = np.array(table[...])
        x_ids = list(run.tokenizer.get_delimiters('x'))
        y_ids = list(run.tokenizer.get_delimiters('y'))
        values_VxD[x_ids] = values_VxD[y_ids]
        table[...] = jax.device_put(values_VxD, table[...].sharding)
    return state


class _OurTrainer:
    """The training loop of launch/train.py without records and checkpoints."""

    def __init__(self, settings: Settings, folder: Path, packed: bool):
        import jax

        from cpt_jax.cli.program import use_compilation_cache
        from cpt_jax.data.batch import make_abstract_batch
        from cpt_jax.runtime.allocator import keep_freed_memory
        from cpt_jax.training.setup import set_up_on_all_processes
        from cpt_jax.training.step import StepPrograms

        use_compilation_cache()
        keep_freed_memory()  # as in all programs
        self.settings = settings
        self.run = set_up_on_all_processes(
            make_our_config(settings, folder, packed), folder / 'run'
        )
        self.state = make_starting_state(self.run)
        self.upcoming = self.run.iterate_batches_after(0)
        self.programs = StepPrograms(self.run)
        self.first_loss = None
        layout = self.run.layout
        with jax.set_mesh(self.run.mesh):
            # Compile all row counts now, so that no turn includes a compilation.
            for rows in (*layout.smaller_row_counts, layout.rows):
                smaller = dataclasses.replace(layout, rows=rows)
                self.programs(self.state, make_abstract_batch(smaller, self.run.mesh))

    def run_turn(self) -> dict[str, float]:
        """Runs the next steps; returns times and counts without the first step."""
        import jax

        from cpt_jax.data.batch import place_batch

        run = self.run
        steps = []
        columns = []
        with jax.set_mesh(run.mesh):
            for number in range(1 + self.settings.steps):
                batch = place_batch(next(self.upcoming), run.mesh, run.layout)
                self.state, metrics = self.programs(self.state, batch)(self.state, batch)
                steps.append(jax.device_get(metrics))  # on a CPU the training loop also waits
                columns.append(batch.tokens_JxRxS.size)
                if number == 0:
                    start = Moment.now()
            end = Moment.now()
        self.first_loss = self.first_loss or float(steps[0]['loss'])
        timed = steps[1:]
        pairs = self.settings.batch * self.settings.steps
        return start.until(end) | {
            'pairs': pairs,
            'tokens': sum(int(metrics['tokens']) for metrics in timed),
            'computed': sum(columns[1:]),
            'dropped': pairs - sum(int(metrics['pairs']) for metrics in timed),
            'first_loss': self.first_loss,
            'loss': float(np.mean([metrics['loss'] for metrics in steps])),
        }


_get_our_trainer = functools.cache(_OurTrainer)


def run_our_turn(settings: Settings, folder: Path, packed: bool, number: int) -> dict[str, float]:
    """Runs one turn of our side; returns its results."""
    del number  # the trainer continues after its last batch
    return _get_our_trainer(settings, folder, packed).run_turn()


class _TheirTrainer:
    """SentenceTransformerTrainer on the same batches in the same order."""

    def __init__(self, settings: Settings, folder: Path):
        from gpt2_twin import load_twin

        self.settings = settings
        self.folder = folder
        self.model = load_twin(folder / 'twin', count_cores())
        self.pairs = read_pairs(str(folder / 'pairs.jsonl'))
        self.order = np.load(folder / 'order.npy')
        self.lengths_PxT = np.load(folder / 'lengths.npy')
        self.first_loss = self.compute_loss(self.order[0])

    def run_turn(self, number: int) -> dict[str, float]:
        """Runs the steps of one turn; returns times and counts without the first step."""
        from datasets import Dataset

        steps = self.settings.steps
        batches = self.order[number * (1 + steps) : (number + 1) * (1 + steps)]
        x, y = zip(*(self.pairs[pair] for pair in batches.ravel()), strict=True)
        ends, loss = self.train(Dataset.from_dict({'anchor': x, 'positive': y}), 1 + steps)
        timed_SxBxT = self.lengths_PxT[batches[1:]]
        # The texts of each side of a batch are padded to the longest of them.
        computed = int(timed_SxBxT.max(1).sum()) * self.settings.batch
        return ends[0].until(ends[-1]) | {
            'pairs': self.settings.batch * steps,
            'tokens': int(timed_SxBxT.sum()),
            'computed': computed,
            'dropped': 0,
            'first_loss': self.first_loss,
            'loss': loss,
        }

    def compute_loss(self, batch: np.ndarray) -> float:
        """Returns the current loss of a batch of pairs."""
        import torch
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        with torch.no_grad():
            pairs = [self.pairs[pair] for pair in batch]
            sides = [self.model.preprocess(list(texts)) for texts in zip(*pairs, strict=True)]
            return MultipleNegativesRankingLoss(self.model)(sides, None).item()

    def train(self, dataset, steps: int) -> tuple[list[Moment], float]:
        """Trains with a new optimizer; returns the end of each step, and the mean loss."""
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from torch.utils.data import BatchSampler, SequentialSampler
        from transformers import PrinterCallback, TrainerCallback

        class Clock(TrainerCallback):
            def __init__(self):
                self.ends = []

            def on_step_end(self, *arguments, **keywords) -> None:
                self.ends.append(Moment.now())

        def make_sampler(dataset, batch_size: int, **keywords) -> BatchSampler:
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=True)

        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(self.folder / 'trainer'), max_steps=steps,
            per_device_train_batch_size=self.settings.batch, use_cpu=True,
            learning_rate=5e-5, lr_scheduler_type='constant', batch_sampler=make_sampler,
            dataloader_num_workers=0, report_to='none',
            eval_strategy='no', save_strategy='no', logging_strategy='no', disable_tqdm=True,
        )  # fmt: skip
        clock = Clock()
        loss = MultipleNegativesRankingLoss(self.model)
        trainer = SentenceTransformerTrainer(
            self.model, arguments, train_dataset=dataset, loss=loss, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(trainer.model_card_callback_class)
        return clock.ends, trainer.train().training_loss


_get_their_trainer = functools.cache(_TheirTrainer)


def run_their_turn(settings: Settings, folder: Path, number: int) -> dict[str, float]:
    """Runs one turn of sentence-transformers; returns its results."""
    return _get_their_trainer(settings, folder).run_turn(number)


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    flags.DEFINE_string(
        'pairs',
        '',
        'A .jsonl file of {"x": ..., "y": ...}. Default: the docstrings and functions of '
        'installed packages.',
    )
    flags.DEFINE_enum(
        'lengths',
        'real',
        ['real', 'equal'],
        'Lengths of texts; equal: all are repeated or truncated to max_tokens.',
    )
    flags.DEFINE_integer('batch', 64, 'Pairs in a batch.')
    flags.DEFINE_integer('steps', 4, 'Timed steps in a turn, after one that is not timed.')
    define_flags()
    run_program(main)
