"""Compares a student of a teacher's vectors with contrastive training alone, at equal time.

The metric is held-out code search.

Example:
  python benchmarks/student.py --teacher models/all-MiniLM-L6-v2 --seeds=3

Both sides train the one-layer model of configs/quickstart.py on its pairs. The student also learns
the teacher's vectors of all texts (the term teacher_mse, docs/second-stage.md), which are computed
once and kept in --workdir. The program first times both kinds of step in turn; the side without a
teacher gets as many more steps as the student's steps cost. The time of the teacher's vectors is
printed and not counted. `ratio` in the JSON is the student's mean MRR over the other's.
"""

import json
import tempfile
from pathlib import Path

from absl import flags
from lm_start import compute_mean, time_steps, train_run

from cpt_jax.cli.program import run_program
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    alone = load_config(_CONFIG.value or ROOT / 'configs/quickstart.py')
    alone['evaluation']['every_steps'] = 10**6  # only at the last step
    if _STEPS.value:
        alone['train']['steps'] = _STEPS.value
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_WORKDIR.value or temporary)
        student = make_student(alone, folder / 'vectors')
        steps = alone['train']['steps']
        seconds = time_steps({'student': student, 'alone': alone}, _REPEATS.value)
        steps_alone = round(steps * seconds['student'] / seconds['alone'])
        print(
            f'CPU time of a step: {seconds["student"]:.2f} s for the student, '
            f'{seconds["alone"]:.2f} s without a teacher, which gets {steps_alone} steps for '
            f'{steps}'
        )
        rows = []
        for seed in range(_SEEDS.value):
            sides = {'student': (student, steps), 'alone': (alone, steps_alone)}
            rows.append(
                {
                    name: train_run(config, seed, folder / f'{name}{seed}', count)['heldout_mrr']
                    for name, (config, count) in sides.items()
                }
            )
            print(f'seed {seed}: {json.dumps(rows[-1])}', flush=True)
    print('\n| seed | MRR of the student | MRR without a teacher |\n| --- | --- | --- |')
    for seed, row in enumerate(rows):
        print(f'| {seed} | {row["student"]:.4f} | {row["alone"]:.4f} |')
    means = {name: compute_mean(rows, name) for name in ('student', 'alone')}
    print(f'| mean | {means["student"]:.4f} | {means["alone"]:.4f} |')
    if _JSON.value:
        found = {'ratio': means['student'] / means['alone'], 'seconds': seconds, 'seeds': rows}
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')


def make_student(config: dict, folder: Path) -> dict:
    """Returns the config with the teacher's vectors, which are computed if they are missing."""
    from cpt_jax.data.mixture import make_sources
    from cpt_jax.text.corpus import Corpus

    if any(section['kind'] == 'text' for section in config['data']['sources'].values()):
        raise UserError('--config: sources of kind text need a tokenizer, which is not trained yet')
    sources, _ = make_sources(config['data']['sources'], 'train', None)  # type: ignore[arg-type]
    pairs = [source[i] for source in sources.values() for i in range(len(source))]
    folder.mkdir(parents=True, exist_ok=True)
    for side, texts in {'x': [pair.x for pair in pairs], 'y': [pair.y for pair in pairs]}.items():
        path = folder / f'{side}.jsonl'
        rows = [json.dumps({'text': text}) + '\n' for text in dict.fromkeys(texts)]
        path.write_text(''.join(rows))
        embed_texts(Corpus(path, 'text'), side, folder / side)
    terms = (('teacher_mse', _WEIGHT.value),)
    teacher = f'{folder / "x"},{folder / "y"}'
    loss = config['loss'] | {'teacher': teacher, 'terms': terms, 'infonce': _INFONCE.value}
    return config | {'loss': loss}


def embed_texts(corpus, side: str, directory: Path) -> None:
    """Writes the teacher's vectors of the texts that have none yet."""
    from cpt_jax.data.pairs import compute_text_key
    from cpt_jax.embed.load import load_embedder
    from cpt_jax.storage.vector_shards import VectorWriter
    from cpt_jax.storage.vectors_meta import VectorsMeta
    from turns import Moment

    embedder = load_embedder(_TEACHER.value, max_tokens=_MAX_TOKENS.value)
    meta = VectorsMeta(
        embedder.model_name,
        embedder.settings,
        side,
        str(corpus.path),
        corpus.fingerprint,
        len(corpus),
        embedder.width,
        shard_size=2000,
    )
    writer = VectorWriter(directory, meta)
    writer.write_text_keys(compute_text_key(text) for _, text in corpus)
    start = Moment.now()
    names, texts = zip(*corpus, strict=True)
    missing = list(writer.missing)
    for shard in missing:
        rows = slice(shard * meta.shard_size, (shard + 1) * meta.shard_size)
        writer.add(names[rows], embedder(list(texts[rows]), side))
    seconds = start.until(Moment.now())['cpu_seconds']
    shards = f'{len(missing)} shards of vectors of side {side}'
    print(f'{shards}: {seconds:,.0f} s of CPU time', flush=True)


if __name__ == '__main__':
    # Flags are defined here because tests import several of these modules.
    _TEACHER = flags.DEFINE_string('teacher', None, 'Model of the vectors.', required=True)
    _CONFIG = flags.DEFINE_string('config', '', 'Config of both sides; default: the quickstart.')
    _WEIGHT = flags.DEFINE_float('weight', 100.0, 'Weight of teacher_mse.')
    _INFONCE = flags.DEFINE_float('infonce', 1.0, 'Weight of InfoNCE for the student.')
    _MAX_TOKENS = flags.DEFINE_integer('max_tokens', 128, 'Tokens that the teacher reads.')
    _STEPS = flags.DEFINE_integer('steps', 0, "Steps of the student; 0: the config's.")
    _SEEDS = flags.DEFINE_integer('seeds', 3, 'Number of seeds.', lower_bound=1)
    _REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed steps of each side.', lower_bound=1)
    _WORKDIR = flags.DEFINE_string('workdir', '', 'Keep vectors and runs in this folder.')
    _JSON = flags.DEFINE_string('json', '', 'Also write the results to this file.')
    run_program(main)
