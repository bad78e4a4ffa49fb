r"""Searches for the best demonstration for a language model: PromptEOL's in-context learning
(arXiv 2307.16645, section 4.2).

Shows each candidate before every sentence of STS-B's dev set and scores the embeddings; the prefix
that all sentences share is computed once per candidate. Writes one row per candidate
(demonstrations.jsonl), a ranked table (demonstrations.md) and the best candidate (best.json), and
prints the command that evaluates it. Run the same command again to resume a search that was killed,
or to add candidates to a finished one.

A file of candidates has one per line: a sentence, a tab and its word, or a complete template as in
the paper's icl_examples.txt. With --build_..., the program only writes such a file,
OUTPUT/candidates.tsv:
  --build_sts words.tsv        sentences of STS-B train with the words in this file (sentence, tab,
                               word); if the file does not exist, it is created with --count
                               sentences whose words you fill in
  --build_dictionary def.tsv   definitions from a dictionary, a tab-separated file with columns word
                               and definition
  --build_labels MR            for transfer tasks: one training sentence per class, with its label
                               as the word

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

from cpt_jax.cli.model_flags import define_model_flags
from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.embed.function import Embed
from cpt_jax.evals.demonstrations import candidates
from cpt_jax.evals.demonstrations.selection import (
    BEST,
    NOTE,
    TABLE,
    Row,
    count_helpful,
    format_page,
    format_ranking,
    rank_rows,
    search_demonstrations,
)
from cpt_jax.evals.registry import fetch_data_dir
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks import sts
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.json_files import write_json
from cpt_jax.storage.paths import local_path
from cpt_jax.storage.remote import expand_home, fetch
from cpt_jax.storage.writable import check_writable
from cpt_jax.text.prompt_template import Prompt

_MODEL, _read_model_options = define_model_flags(evaluation=True, required=False)
_CANDIDATES = flags.DEFINE_list('candidates', [], 'Files of candidates, separated by commas.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'Directory with senteval/ (data/downstream of SentEval), which contains STS/STSBenchmark.',
)
_OUTPUT = flags.DEFINE_string('output', 'results/demonstrations', 'Directory to write to.')
_TASK = flags.DEFINE_enum(
    'task',
    'sts/STSBenchmark',
    ['sts/STSBenchmark', 'sts/SICK-R'],
    'Task whose dev set the candidates are scored on.',
)
_LIMIT = flags.DEFINE_integer(
    'limit', 0, 'Number of candidates to score, from the first; 0 scores all.', lower_bound=0
)
_PAIRS = flags.DEFINE_integer(
    'pairs',
    0,
    'Number of dev pairs to score with each candidate, a random sample drawn with --seed; 0 scores '
    'all.',
    lower_bound=0,
)
_STS = flags.DEFINE_string(
    'build_sts', None, 'Build candidates: file of words for sentences of STS-B train.'
)
_DICTIONARY = flags.DEFINE_string(
    'build_dictionary', None, 'Build candidates: file of the dictionary.'
)
_LABELS = flags.DEFINE_enum(
    'build_labels',
    None,
    [*candidates.LABEL_WORDS],
    'Build candidates: task whose labels are the words.',
)
_COUNT = flags.DEFINE_integer(
    'count',
    0,
    'Build candidates: number to sample of each kind; 0 means 100 sentences, 200 definitions, or '
    '100 candidates of labels.',
    lower_bound=0,
)
_SEED = flags.DEFINE_integer(
    'seed', 0, 'Random seed of the samples of --pairs and --build_....', lower_bound=0
)


def main() -> None:
    output = local_path(_OUTPUT.value, '--output')
    check_writable(output, '--output')
    if _STS.value or _DICTIONARY.value or _LABELS.value:
        _build_candidates(output)
    elif not _MODEL.value or not _CANDIDATES.value or not _DATA_DIR.value:
        raise UserError(
            '--model, --candidates and --data_dir are needed for a search (--build_... makes '
            'candidates)'
        )
    else:
        use_compilation_cache()
        _search_candidates(output)


def _build_candidates(output: Path) -> None:
    path = output / 'candidates.tsv'
    data_dir = Path(fetch_data_dir(_DATA_DIR.value, [_TASK.value]) or '')
    if path.exists():
        raise UserError(f'{path}: already exists: remove it, or give another --output')
    if (_STS.value or _LABELS.value) and not _DATA_DIR.value:
        raise UserError('--data_dir is missing: give the directory of senteval/ with the sentences')
    found = []
    count = _COUNT.value
    seed = _SEED.value
    if _STS.value:
        words = expand_home(_STS.value, '--build_sts')
        if not words.exists():
            wanted = count or candidates.SENTENCES
            drawn = candidates.draw_sentences(data_dir, wanted, seed)
            words.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(words, ''.join(f'{sentence}\t\n' for sentence in drawn))
            _report_shortage(len(drawn), wanted, 'sentences', 'STS-B train')
            print(
                f'{words}: {len(drawn):,} sentences of STS-B train; write a word after the tab of '
                f'each line, and run the same command again'
            )
            return
        found += candidates.read_sentence_words(words, data_dir)
    if _DICTIONARY.value:
        found += candidates.draw_definitions(
            fetch(_DICTIONARY.value, '--build_dictionary'), count or candidates.DEFINITIONS, seed
        )
    if _LABELS.value:
        wanted = count or candidates.LABEL_PAIRS
        labelled = candidates.draw_label_demonstrations(_LABELS.value, data_dir, wanted, seed)
        _report_shortage(
            len(labelled), wanted, 'candidates of labels', f'the smallest class of {_LABELS.value}'
        )
        found += labelled
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, candidates.format_candidates(found))
    print(f'{len(found):,} candidates; written to {path}')
    if _LABELS.value:
        shown = ' '.join(f'--demonstration {shlex.quote("=".join(pair))}' for pair in found[0])
        print(
            f'to evaluate with one of them: python launch/evaluate.py --tasks '
            f'probe/{_LABELS.value} ... {shown}'
        )
        if _LABELS.value in candidates.WITHOUT_SPLIT:
            print(
                f'{_LABELS.value} has no separate training set: as in the paper, its folds also '
                f'test the sentences that are shown'
            )


def _report_shortage(found: int, wanted: int, what: str, source: str) -> None:
    """Prints a line if fewer candidates were found than wanted."""
    if found < wanted:
        print(f'only {found:,} of {wanted:,} {what}: {source} has no more')


def _search_candidates(output: Path) -> None:
    options = _read_model_options()
    if options['representation'].demonstrations:
        raise UserError('--demonstration: remove this flag; the search shows its own candidates')
    for name in _CANDIDATES.value:
        if not fetch(name, '--candidates').is_file():
            raise UserError(f'--candidates {name}: no such file')
    data_dir = epath.Path(fetch_data_dir(_DATA_DIR.value, [_TASK.value]))
    tasks = sts.find_similarity(data_dir, sts.SimilarityOptions(split='dev'), Context())
    if _TASK.value not in tasks:
        raise UserError(
            f'--task {_TASK.value}: its dev set is not in --data_dir {_DATA_DIR.value}: '
            f'{sts.LAYOUT}'
        )

    # Imported here because they import JAX, whose platform run_program chooses first.
    from cpt_jax.embed.load import add_weights_fingerprint, load_embedder

    task = cast(sts.Similarity, tasks[_TASK.value])
    if _PAIRS.value == 1:
        raise UserError('--pairs 1: the correlation of one pair is not defined; give more')
    if _PAIRS.value:
        task = sts.sample_pairs(task, _PAIRS.value, _SEED.value)
    embedder = load_embedder(_MODEL.value, **options)
    if embedder.prompt is None:
        raise UserError(
            f'--model {_MODEL.value}: this model uses no template: give --representation '
            f'prompteol, with a language model'
        )
    found = candidates.read_candidates(
        [fetch(name, '--candidates') for name in _CANDIDATES.value], embedder.prompt.template
    )[: _LIMIT.value or None]
    add_weights_fingerprint(embedder, _MODEL.value)
    about = {
        'model': embedder.model_name,
        'settings': embedder.settings,
        'task': task.name,
        'split': 'dev',
        'data': task.fingerprint(),
    }
    start = time.perf_counter()
    # The cast is needed because its side is 'x' or 'y', and Embed accepts any str.
    read = cast(Callable[[Prompt], Embed], embedder.with_prompt)
    rows = search_demonstrations(read, embedder.prompt, found, task, about, output)
    best = rank_rows(rows)[0]
    if embedder.workdir:
        model = f'{embedder.workdir}@{embedder.settings["step"]}'
    else:
        model = _MODEL.value
    command = _make_evaluation_command(model, data_dir, embedder.encoder.config.pooling, best)
    write_atomically(output / TABLE, format_page(rows, about))
    summary = {
        'without': rows[0]['main_score'],
        'helping': count_helpful(rows),
        'candidates': len(rows) - 1,
        'note': NOTE,
        'command': command,
    }
    write_json(output / BEST, {**about, **best, **summary})
    print(format_ranking(rows))
    total_seconds = sum(row['seconds'] for row in rows)
    spent = f'{time.perf_counter() - start:,.0f} s in this run, {total_seconds:,.0f} s in total'
    print(
        f'\n{count_helpful(rows):,} of {len(rows) - 1:,} candidates help; '
        f'{rows[0]["main_metric"]} x100 '
        f'on {rows[0]["n"]:,} pairs of {task.name}, dev; {spent}'
    )
    print(
        f'{NOTE}\nwritten to {output / TABLE}, {output / BEST}; to evaluate the best one:\n'
        f'  {command}'
    )


def _make_evaluation_command(model: str, data_dir: epath.Path, pooling: str, best: Row) -> str:
    """Returns the launch/evaluate.py command for the best candidate.

    Args:
      model: model reference for --model.
      data_dir: directory for --data_dir.
      pooling: pooling of the encoder during the search.
      best: the row of the best candidate.
    """
    name = flags.FLAGS.representation
    template = best['template'] or flags.FLAGS.template
    if name == 'own' and template and pooling == 'mean':
        # --template without --representation implies last-token pooling, but this run was trained
        # with mean pooling.
        name = 'mean'
    words = ['python', 'launch/evaluate.py']
    words += ['--model', model, '--tasks', 'sts/*', '--data_dir', str(data_dir)]
    if name != 'own':
        words += ['--representation', name]
    if template:
        words += ['--template', template]
    for pair in best['demonstrations']:
        words += ['--demonstration', '='.join(pair)]
    if not flags.FLAGS.cleanup:
        words.append('--nocleanup')
    for name in ('pooling', 'similarity', 'begin_token', 'dimensions', 'base', 'fsdp'):
        flag = flags.FLAGS[name]
        if flag.value != flag.default:
            words += [f'--{name}', str(flag.value)]
    return ' '.join(map(shlex.quote, words))


def run() -> None:
    """Runs the console script cpt-demonstrations."""
    run_program(main)
