r"""Pairs a second in training: ours, packed and padded, beside sentence-transformers' own trainer,
on this machine's CPU in float32.

Example:
  python benchmarks/train_throughput.py --batch 64 --max_tokens 256 --rounds 3 \
      --json train_throughput.json

All sides start from the same weights of a GPT-2-shaped model and see the same real pairs in the
same batches, cut at the same length: docstrings and functions of the installed packages, or those
of --pairs. Ours is the step of launch/train.py with its input pipeline; theirs is
SentenceTransformerTrainer with MultipleNegativesRankingLoss as it comes, without evaluation, saving
and logging. Both clip gradients and use AdamW; both directions of the loss cost as much as one, and
both sides compute x finds y alone. With --lengths equal every text has exactly --max_tokens tokens,
so that there is no padding to save (try --max_tokens 128). `ratio` in the JSON is ours, packed,
over sentence-transformers, of the medians.
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

from beside import Model, define_flags, report
from cpt_jax.cli.program import run_program
from cpt_jax.runs.config_file import load_config
from turns import Moment, alone, cores, spread, take_turns

ROOT = Path(__file__).resolve().parents[1]

PEER = 'sentence-transformers'
PACKED, PADDED = 'ours, packed', 'ours, padded'
CLOSE = 1e-4  # vectors of both sides for the same texts, at the start


@dataclasses.dataclass(frozen=True)
class Settings(Model):
    """With what the batches are."""

    pairs: str
    lengths: str
    batch: int
    steps: int


def main() -> None:
    report(Settings, measure, print_table)


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """The figures of all sides; see `print_table` for what they are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        difference = alone(prepare, settings, folder, rounds)
        ours = {
            name: functools.partial(our_turn, settings, folder, name == PACKED)
            for name in (PACKED, PADDED)
        }
        turns = take_turns(
            {'ours': ours, 'theirs': {PEER: functools.partial(their_turn, settings, folder)}},
            rounds,
        )
    sides = {name: summary(side) for name, side in turns.items()}
    rate = {name: side['pairs_per_second']['median'] for name, side in sides.items()}
    return {
        'ratio': rate[PACKED] / rate[PEER],
        'padded_ratio': rate[PADDED] / rate[PEER],
        'packed_over_padded': rate[PACKED] / rate[PADDED],
        'vectors_differ_by': difference,
        'settings': dataclasses.asdict(settings) | {'rounds': rounds, 'cores': cores()},
        'sides': sides,
    }


def summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Of one side's turns."""
    total = {
        key: sum(turn[key] for turn in turns)
        for key in ('pairs', 'tokens', 'computed', 'dropped', 'cpu_seconds')
    }
    return {
        'pairs_per_second': spread([turn['pairs'] / turn['seconds'] for turn in turns]),
        'tokens_per_second': spread([turn['tokens'] / turn['seconds'] for turn in turns]),
        'pairs_per_cpu_second': total['pairs'] / total['cpu_seconds'],
        'useful_share': total['tokens'] / total['computed'],
        'dropped_pairs': total['dropped'],
        'first_loss': turns[0]['first_loss'],
        'loss': turns[-1]['loss'],
        'turns': list(turns),
    }


def print_table(result: dict[str, Any]) -> None:
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
        f'the vectors of both sides differ by {result["vectors_differ_by"]:.1e} at most; losses '
        f'are of the first batch'
    )


def our_config(settings: Settings, folder: Path, packed: bool) -> dict[str, Any]:
    """configs/base.py with the settings; what a trainer of torch has by default stays at that:
    AdamW's constants, no weight decay.
    """
    config = load_config(ROOT / 'configs/base.py')
    limits = {'max_tokens_x': settings.max_tokens, 'max_tokens_y': settings.max_tokens}
    source = {'kind': 'jsonl', 'weight': 1.0, 'path': str(folder / 'pairs.jsonl')}
    config['tokenizer']['path'] = str(folder / 'tokenizer.json')
    config['data'] |= limits | {
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
    # With 'passthrough', the vectors of fresh weights differ by their text.
    config['model'] |= {'init': 'passthrough', 'remat': 'none', 'dtype': 'float32'}
    # MultipleNegativesRankingLoss: a scale of 20.
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
    """Writes what all sides read: pairs.jsonl, tokenizer.json, twin/, and order.npy, lengths.npy of
    the batches of all turns.

    Returns:
      The largest difference between the vectors that both sides' models have for the same texts.
    """

    from cpt_jax.data.batch import sample_lengths
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
            tuple(lengthened(text, settings.max_tokens, tokenizer) for text in pair)
            for pair in pairs
        ]
    with (folder / 'pairs.jsonl').open('w') as file:
        file.writelines(json.dumps({'x': x, 'y': y}) + '\n' for x, y in pairs)

    run = set_up(our_config(settings, folder, True), folder / 'run')
    count = (1 + rounds) * (1 + settings.steps)
    np.save(folder / 'order.npy', np.stack([run.indices[step].pairs for step in range(count)]))
    np.save(folder / 'lengths.npy', sample_lengths(run.reader, 0, len(pairs)))
    state = starting_state(run)
    save_twin(state.params.encoder, run.tokenizer, settings.max_tokens, folder / 'twin')
    texts = [text for pair in pairs[:32] for text in pair]
    theirs = load_twin(folder / 'twin', cores()).encode(texts, show_progress_bar=False)
    difference = float(np.abs(make_embedder(state.params, run.held_out)(texts, 'y') - theirs).max())
    if difference > CLOSE:
        raise ValueError(
            f'the vectors of both sides differ by {difference:.1e}: these are not the same models'
        )
    return difference


def read_pairs(path: str) -> list[tuple[str, str]]:
    """x and y of all pairs of a file; of the default source without one."""
    from cpt_jax.data.sources.jsonl import JsonlSource
    from cpt_jax.data.sources.python_source import PythonSource

    source = JsonlSource(path, 'train') if path else PythonSource('train')
    return [(pair.x, pair.y) for pair in map(source.__getitem__, range(len(source)))]


def lengthened(text: str, tokens: int, tokenizer) -> str:
    """The text again and again until it has so many tokens; the tokenizer cuts what is over."""
    while tokenizer.count([text])[0] < tokens:
        text = f'{text}\n{text}'
    return text


def starting_state(run):
    """A fresh state in which the delimiters of x start as those of y, which are all that the twin
    has: both sides start at one loss.
    """
    import jax

    with jax.set_mesh(run.mesh):
        state = jax.jit(run.init)()
        table = state.params.encoder.token_embedding
        values_VxD = np.array(table[...])
        values_VxD[list(run.tokenizer.delimiters('x'))] = values_VxD[
            list(run.tokenizer.delimiters('y'))
        ]
        table[...] = jax.device_put(values_VxD, table[...].sharding)
    return state


class _Ours:
    """launch/train.py's loop without its records and checkpoints."""

    def __init__(self, settings: Settings, folder: Path, packed: bool):
        import jax

        from cpt_jax.cli.program import use_compilation_cache
        from cpt_jax.data.batch import abstract_batch
        from cpt_jax.runtime.allocator import keep_freed_memory
        from cpt_jax.training.setup import set_up_together
        from cpt_jax.training.step import StepPrograms

        use_compilation_cache()
        keep_freed_memory()  # as every program does
        self.settings = settings
        self.run = set_up_together(our_config(settings, folder, packed), folder / 'run')
        self.state = starting_state(self.run)
        self.upcoming = self.run.batches_after(0)
        self.programs = StepPrograms(self.run)
        self.first_loss = None
        layout = self.run.layout
        with jax.set_mesh(self.run.mesh):
            for rows in (*layout.smaller_row_counts, layout.rows):  # now, and not within a turn
                self.programs(
                    self.state,
                    abstract_batch(dataclasses.replace(layout, rows=rows), self.run.mesh),
                )

    def turn(self) -> dict[str, float]:
        """The next steps; the first is left out of the time."""
        import jax

        from cpt_jax.data.batch import place

        run, steps, columns = self.run, [], []
        with jax.set_mesh(run.mesh):
            for number in range(1 + self.settings.steps):
                batch = place(next(self.upcoming), run.mesh, run.layout)
                self.state, metrics = self.programs(self.state, batch)(self.state, batch)
                steps.append(jax.device_get(metrics))  # on a CPU the loop waits for each step
                columns.append(batch.tokens_CxRxS.size)
                if number == 0:
                    start = Moment.now()
            end = Moment.now()
        self.first_loss = self.first_loss or float(steps[0]['loss'])
        timed, pairs = steps[1:], self.settings.batch * self.settings.steps
        return start.until(end) | {
            'pairs': pairs,
            'tokens': sum(int(metrics['tokens']) for metrics in timed),
            'computed': sum(columns[1:]),
            'dropped': pairs - sum(int(metrics['pairs']) for metrics in timed),
            'first_loss': self.first_loss,
            'loss': float(np.mean([metrics['loss'] for metrics in steps])),
        }


_ours = functools.cache(_Ours)


def our_turn(settings: Settings, folder: Path, packed: bool, number: int) -> dict[str, float]:
    del number  # it goes on from where it was
    return _ours(settings, folder, packed).turn()


class _Theirs:
    """SentenceTransformerTrainer on the same batches in the same order."""

    def __init__(self, settings: Settings, folder: Path):
        from gpt2_twin import load_twin

        self.settings = settings
        self.folder = folder
        self.model = load_twin(folder / 'twin', cores())
        self.pairs = read_pairs(str(folder / 'pairs.jsonl'))
        self.order = np.load(folder / 'order.npy')
        self.lengths_PxT = np.load(folder / 'lengths.npy')
        self.first_loss = self.loss_of(self.order[0])

    def turn(self, number: int) -> dict[str, float]:
        """The steps of one turn; the first is left out of the time."""
        from datasets import Dataset

        steps = self.settings.steps
        batches = self.order[number * (1 + steps) : (number + 1) * (1 + steps)]
        x, y = zip(*(self.pairs[pair] for pair in batches.ravel()), strict=True)
        ends, loss = self.train(Dataset.from_dict({'anchor': x, 'positive': y}), 1 + steps)
        timed_SxBxT = self.lengths_PxT[batches[1:]]
        return ends[0].until(ends[-1]) | {
            'pairs': self.settings.batch * steps,
            'tokens': int(timed_SxBxT.sum()),
            'computed': int(timed_SxBxT.max(1).sum())
            * self.settings.batch,  # each column is padded to its longest text
            'dropped': 0,
            'first_loss': self.first_loss,
            'loss': loss,
        }

    def loss_of(self, batch: np.ndarray) -> float:
        """Of some pairs, as the model stands."""
        import torch
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        with torch.no_grad():
            sides = [
                self.model.preprocess(list(texts))
                for texts in zip(*(self.pairs[pair] for pair in batch), strict=True)
            ]
            return MultipleNegativesRankingLoss(self.model)(sides, None).item()

    def train(self, dataset, steps: int) -> tuple[list[Moment], float]:
        """When each step ended, and the mean loss; the weights stay, the optimizer starts anew."""
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

            def on_step_end(self, *arguments, **more) -> None:
                self.ends.append(Moment.now())

        def in_order(dataset, batch_size: int, **rest) -> BatchSampler:
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=True)

        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(self.folder / 'trainer'), max_steps=steps,
            per_device_train_batch_size=self.settings.batch, use_cpu=True,
            learning_rate=5e-5, lr_scheduler_type='constant', batch_sampler=in_order,
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


_theirs = functools.cache(_Theirs)


def their_turn(settings: Settings, folder: Path, number: int) -> dict[str, float]:
    return _theirs(settings, folder).turn(number)


if __name__ == '__main__':
    # Here, as the tests import several of these programs.
    flags.DEFINE_string(
        'pairs',
        '',
        'A .jsonl file of {"x": ..., "y": ...}; by default the docstrings and functions of '
        'installed packages.',
    )
    flags.DEFINE_enum(
        'lengths',
        'real',
        ['real', 'equal'],
        'Of the texts; equal: all are filled or cut to max_tokens.',
    )
    flags.DEFINE_integer('batch', 64, 'Pairs in a batch.')
    flags.DEFINE_integer('steps', 4, 'Timed in a turn, behind one that is not.')
    define_flags()
    run_program(main)
