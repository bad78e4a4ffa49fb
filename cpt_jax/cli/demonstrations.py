r"""Searches for the demonstration that helps a language model most: PromptEOL's in-context learning
(arXiv 2307.16645, 4.2).

Each candidate alone is shown before every sentence of STS-B's dev set; what all sentences begin
with is computed once a candidate. Writes a row for each (demonstrations.jsonl), a ranked table
(demonstrations.md) and the best one (best.json), and prints the command that evaluates it. A search
that is killed goes on where it was; more candidates may be added to one that has ended.

A file of candidates has one a line: a sentence, a tab and its word, or a whole template, as the
paper's icl_examples.txt. With --build_... the program writes such a file, OUTPUT/candidates.tsv,
and ends:
  --build_sts words.tsv        sentences of STS-B train with words given in a file (sentence, tab,
                               word); where there is no such file, it is made, of --count
                               sentences that wait for a word
  --build_dictionary def.tsv   definitions of a dictionary, a tab-separated file with columns word
                               and definition
  --build_labels MR            for transfer tasks: a training sentence of each class, with its
                               label as the word

Example:
  python launch/demonstrations.py --build_dictionary def_word.tsv --output demos
  python launch/demonstrations.py --model ~/opt-125m --representation prompteol \
      --candidates icl_examples.txt,demos/candidates.tsv --data_dir ~/data --output demos/opt-125m
"""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from absl import flags
from etils import epath

from cpt_jax.cli.model_flags import define_model
from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.embed.function import Embed
from cpt_jax.evals.demonstrations import candidates
from cpt_jax.evals.demonstrations.selection import (
    BEST,
    NOTE,
    TABLE,
    Row,
    format_page,
    format_ranking,
    helping,
    ranked,
    search_demonstrations,
)
from cpt_jax.evals.fingerprint import fingerprint_weights
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks import sts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_files import write_json
from cpt_jax.storage.local_path import local_path
from cpt_jax.text.prompt_template import Prompt

_MODEL, _OPTIONS = define_model(evaluation=True, required=False)
_CANDIDATES = flags.DEFINE_list('candidates', [], 'Files of candidates, with commas between them.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Holds senteval/ (data/downstream of SentEval) with STS/STSBenchmark.'
)
_OUTPUT = flags.DEFINE_string('output', 'results/demonstrations', 'The directory to write into.')
_TASK = flags.DEFINE_enum(
    'task',
    'sts/STSBenchmark',
    ['sts/STSBenchmark', 'sts/SICK-R'],
    'Whose dev set candidates are scored on.',
)
_LIMIT = flags.DEFINE_integer(
    'limit', 0, 'Only so many candidates, the first ones; 0: all.', lower_bound=0
)
_STS = flags.DEFINE_string(
    'build_sts', None, 'Build candidates: the file of words for sentences of STS-B train.'
)
_DICTIONARY = flags.DEFINE_string('build_dictionary', None, 'Build candidates: the dictionary.')
_LABELS = flags.DEFINE_enum(
    'build_labels',
    None,
    [*candidates.LABEL_WORDS],
    'Build candidates: the task whose labels are the words.',
)
_COUNT = flags.DEFINE_integer(
    'count',
    0,
    'Of candidates of each kind that are drawn at random; 0: 100 sentences, 200 definitions, 100 '
    'of labels.',
    lower_bound=0,
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.', lower_bound=0)


def main() -> None:
    output = local_path(_OUTPUT.value, '--output')
    if _STS.value or _DICTIONARY.value or _LABELS.value:
        _build(output)
    elif not _MODEL.value or not _CANDIDATES.value or not _DATA_DIR.value:
        raise UserError(
            '--model, --candidates and --data_dir are needed for a search (--build_... makes '
            'candidates)'
        )
    else:
        use_compilation_cache()
        _search(output)


def _build(output: Path) -> None:
    path, data_dir = output / 'candidates.tsv', Path(_DATA_DIR.value or '').expanduser()
    if path.exists():
        raise UserError(f'{path}: is there already: remove it, or give another --output')
    if (_STS.value or _LABELS.value) and not _DATA_DIR.value:
        raise UserError('--data_dir is missing: it holds senteval/ with the sentences')
    found, count, seed = [], _COUNT.value, _SEED.value
    if _STS.value:
        words = Path(_STS.value).expanduser()
        if not words.exists():
            wanted = count or candidates.SENTENCES
            drawn = candidates.draw_sentences(data_dir, wanted, seed)
            words.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(words, ''.join(f'{sentence}\t\n' for sentence in drawn))
            _tell_fewer(len(drawn), wanted, 'sentences', 'STS-B train')
            print(
                f'{words}: {len(drawn):,} sentences of STS-B train; write a word behind the tab '
                f'of each, and give the same command again'
            )
            return
        found += candidates.of_words(words, data_dir)
    if _DICTIONARY.value:
        found += candidates.of_dictionary(
            Path(_DICTIONARY.value).expanduser(), count or candidates.DEFINITIONS, seed
        )
    if _LABELS.value:
        wanted = count or candidates.LABEL_PAIRS
        labelled = candidates.of_labels(_LABELS.value, data_dir, wanted, seed)
        _tell_fewer(
            len(labelled), wanted, 'candidates of labels', f'the smallest class of {_LABELS.value}'
        )
        found += labelled
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, candidates.format_candidates(found))
    print(f'{len(found):,} candidates; written to {path}')
    if _LABELS.value:
        shown = ' '.join(f'--demonstration {shlex.quote("=".join(pair))}' for pair in found[0])
        print(
            f'evaluate with one, such as: python launch/evaluate.py --tasks probe/{_LABELS.value} '
            f'... {shown}'
        )
        if _LABELS.value in candidates.WITHOUT_SPLIT:
            print(
                f'{_LABELS.value} has no training set: its folds test the sentences shown too, as '
                f'in the paper'
            )


def _tell_fewer(found: int, wanted: int, what: str, source: str) -> None:
    if found < wanted:
        print(f'{found:,} {what} and not {wanted:,}: {source} has no more')


def _search(output: Path) -> None:
    options = _OPTIONS()
    if options['representation'].demonstrations:
        raise UserError('--demonstration: the search shows its own; leave the flag out')
    for name in _CANDIDATES.value:
        if not Path(name).expanduser().is_file():
            raise UserError(f'--candidates {name}: no such file')
    data_dir = epath.Path(_DATA_DIR.value).expanduser()
    tasks = sts.find_similarity(data_dir, sts.SimilarityOptions(split='dev'), Context())
    if _TASK.value not in tasks:
        raise UserError(
            f'--task {_TASK.value}: its dev set is not in --data_dir {_DATA_DIR.value}: '
            f'{sts.LAYOUT}'
        )

    from cpt_jax.embed.load import (
        load_embedder,  # imports JAX, which waits until run_program has chosen its platform
    )
    from cpt_jax.origin.pretrained import directories_of

    embedder, task = load_embedder(_MODEL.value, **options), tasks[_TASK.value]
    if embedder.prompt is None:
        raise UserError(
            f'--model {_MODEL.value}: its texts stand in no template: give --representation '
            f'prompteol, with a language model'
        )
    found = candidates.read_candidates(
        [Path(name) for name in _CANDIDATES.value], embedder.prompt.template
    )[: _LIMIT.value or None]
    if not embedder.workdir:
        embedder.settings['weights'] = fingerprint_weights(*directories_of(_MODEL.value))
    about = {
        'model': embedder.model_name,
        'settings': embedder.settings,
        'task': task.name,
        'split': 'dev',
        'data': task.fingerprint(),
    }
    start = time.perf_counter()
    read = cast(Callable[[Prompt], Embed], embedder.reading)  # its side is 'x' or 'y', not any str
    rows = search_demonstrations(read, embedder.prompt, found, task, about, output)
    best = ranked(rows)[0]
    model = f'{embedder.workdir}@{embedder.settings["step"]}' if embedder.workdir else _MODEL.value
    command = _command(model, data_dir, embedder.encoder.config.pooling, best)
    write_atomically(output / TABLE, format_page(rows, about))
    told = {
        'without': rows[0]['main_score'],
        'helping': helping(rows),
        'candidates': len(rows) - 1,
        'note': NOTE,
        'command': command,
    }
    write_json(output / BEST, {**about, **best, **told})
    print(format_ranking(rows))
    spent = (
        f'{time.perf_counter() - start:,.0f} s here, {sum(row["seconds"] for row in rows):,.0f} s '
        f'in all'
    )
    print(
        f'\n{helping(rows):,} of {len(rows) - 1:,} candidates help; {rows[0]["main_metric"]} x100 '
        f'on {task.name}, dev; {spent}'
    )
    print(
        f'{NOTE}\nwritten to {output / TABLE}, {output / BEST}; evaluate the best one:\n  {command}'
    )


def _command(model: str, data_dir: epath.Path, pooling: str, best: Row) -> str:
    """Of launch/evaluate.py, with what was found."""
    name, template = flags.FLAGS.representation, best['template'] or flags.FLAGS.template
    if name == 'own' and template and pooling == 'mean':
        # A --template alone says that the last token counts, which is not how this run was trained.
        name = 'mean'
    words = [
        'python',
        'launch/evaluate.py',
        '--model',
        model,
        '--tasks',
        'sts/*',
        '--data_dir',
        str(data_dir),
    ]
    words += ['--representation', name] * (name != 'own') + ['--template', template] * bool(
        template
    )
    words += [
        word for pair in best['demonstrations'] for word in ('--demonstration', '='.join(pair))
    ]
    words += ['--nocleanup'] * (not flags.FLAGS.cleanup) + ['--fsdp', str(flags.FLAGS.fsdp)] * (
        flags.FLAGS.fsdp > 1
    )
    return ' '.join(map(shlex.quote, words))


def run() -> None:
    """The console script cpt-demonstrations."""
    run_program(main)
