"""launch/demonstrations.py as a user runs it: candidates are built, the search is killed and
resumed, and its best candidate is evaluated.
"""

import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from benchmarks.demonstrations import measure
from cpt_jax.embed.load import load_embedder
from cpt_jax.evals.demonstrations.candidates import read_candidates
from cpt_jax.evals.demonstrations.selection import NOTE, make_candidate_prompt
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks import sts
from cpt_jax.text.prompt_template import Representation
from tests.conftest import WORDS, sentences
from tests.embed.test_embedder import write_run
from tests.programs import Program, finish, start_program

DEV = sts.SimilarityOptions(split='dev')
TEMPLATE = 'The "{text}" is:"'


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a run that has a template, a dictionary, and STS-B."""
    folder = tmp_path_factory.mktemp('demonstrations')
    write_run(folder / 'run', tokenizer, template=TEMPLATE, causal=True, max_length=128)
    sts = folder / 'data' / 'senteval' / 'STS' / 'STSBenchmark'
    sts.mkdir(parents=True)
    score = np.random.default_rng(0).uniform(0, 5, 40)
    for seed, split in enumerate(('train', 'dev', 'test')):
        rows = zip(score, sentences(40, 2 * seed), sentences(40, 2 * seed + 1), strict=True)
        (sts / f'sts-{split}.csv').write_text(
            ''.join(f'a\tb\tc\t{i}\t{gold:.2f}\t{x}\t{y}\n' for i, (gold, x, y) in enumerate(rows))
        )
    lines = [
        f'{word}\t{sentence}'
        for word, sentence in zip(WORDS, sentences(len(WORDS), 9), strict=True)
    ]
    (folder / 'words.tsv').write_text('\n'.join(['word\tdefinition', *lines]))
    return folder


def start(folder: Path, *flags: str, program: str = 'demonstrations') -> Program:
    return start_program(program, '--data_dir=data', *flags, cwd=folder)


def test_killed_search_resumes_and_its_best_candidate_is_evaluated(folder):
    built = finish(start(folder, '--build_dictionary=words.tsv', '--count=12', '--output=found'))
    assert 'written to found/candidates.tsv' in built
    flags = '--model=run', '--candidates=found/candidates.tsv', '--output=found'
    process, rows = start(folder, *flags), folder / 'found' / 'demonstrations.jsonl'
    deadline = time.time() + 200
    while not (rows.exists() and rows.read_bytes().count(b'\n') >= 3):
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.002)
    process.kill()
    process.communicate()
    before = rows.read_bytes()
    output = finish(start(folder, *flags))
    complete_lines = before[: before.rfind(b'\n') + 1]
    assert rows.read_bytes().startswith(complete_lines)
    assert rows.read_bytes().count(b'\n') == 1 + 13
    best = json.loads((folder / 'found' / 'best.json').read_text())
    assert f'{best["helping"]} of 12 candidates help' in output
    assert NOTE in output
    page = (folder / 'found' / 'demonstrations.md').read_text()
    assert f'| 1 | {100 * best["main_score"]:.2f} |' in page and len(page.splitlines()) == 19

    command = output.splitlines()[-1].strip()
    assert command == best['command']
    python, program, *words = shlex.split(command)
    assert (python, program) == ('python', 'launch/evaluate.py') and '--representation' not in words
    finish(start(folder, *words, '--split=dev', '--output=again', program='evaluate'))
    scored = json.loads((folder / 'again' / 'results.json').read_text())
    assert scored['tasks']['sts/STSBenchmark']['main_score'] == pytest.approx(
        best['main_score'], abs=1e-6
    )
    assert scored['settings']['demonstrations'] == best['demonstrations']


def test_printed_command_keeps_the_pooling_of_the_run(folder, tokenizer):
    write_run(
        folder / 'averaged',
        tokenizer,
        template=TEMPLATE,
        causal=True,
        max_length=128,
        pooling='mean',
    )
    (folder / 'whole.txt').write_text('A list is a table. {text} is\n')
    output = finish(start(folder, '--model=averaged', '--candidates=whole.txt', '--output=whole'))
    *_, command = output.splitlines()
    _, _, *words = shlex.split(command)
    finish(start(folder, *words, '--split=dev', '--output=averaged_again', program='evaluate'))
    scored = json.loads((folder / 'averaged_again' / 'results.json').read_text())['tasks'][
        'sts/STSBenchmark'
    ]['main_score']
    assert scored == pytest.approx(
        json.loads((folder / 'whole' / 'best.json').read_text())['main_score'], abs=1e-6
    )


def test_sample_of_pairs_is_scored_and_the_printed_command_keeps_the_flags(folder):
    flags = '--model=run', '--candidates=some.tsv', '--dimensions=16', '--pairs=15'
    (folder / 'some.tsv').write_text('list file parser return value\tTable\n')
    output = finish(start(folder, *flags, '--output=sampled'))
    best = json.loads((folder / 'sampled' / 'best.json').read_text())
    assert best['n'] == 15 and '15 pairs of sts/STSBenchmark' in output
    assert shlex.split(best['command'])[-2:] == ['--dimensions', '16']
    # Another sample is another search.
    output = finish(start(folder, *flags, '--seed=1', '--output=sampled'), 1)
    assert 'belongs to another search, with different data' in output

    gold = np.loadtxt(
        folder / 'data' / 'senteval' / 'STS' / 'STSBenchmark' / 'sts-dev.csv', str, delimiter='\t'
    )
    task = sts.find_similarity(epath.Path(folder / 'data'), DEV, Context())['sts/STSBenchmark']
    (sample,) = sts.sample_pairs(task, 15, 0).load()
    drawn = np.sort(np.random.default_rng(0).permutation(40)[:15])
    assert sample.texts == [tuple(row) for row in gold[drawn, 5:7]]
    np.testing.assert_array_equal(sample.gold_N, gold[drawn, 4].astype(float))
    # A sample of all pairs is the search over all pairs.
    assert sts.sample_pairs(task, 40, 0) is task


def test_shortage_of_label_candidates_is_reported(folder):
    (folder / 'data' / 'senteval' / 'MR').mkdir()
    for kind, count in ('pos', 7), ('neg', 5):
        (folder / 'data' / 'senteval' / 'MR' / f'rt-polarity.{kind}').write_text(
            '\n'.join(sentences(count, count)) + '\n'
        )
    output = finish(start(folder, '--build_labels=MR', '--output=labels'))
    assert 'only 5 of 100 candidates of labels: the smallest class of MR has no more' in output
    assert len((folder / 'labels' / 'candidates.tsv').read_text().splitlines()) == 5


def test_missing_inputs_are_one_line_errors(folder):
    for flags, words in [
        (['--model=run'], '--model, --candidates and --data_dir are needed for a search'),
        (
            ['--build_labels=CR', '--output=new'],
            '--build_labels CR: no senteval/CR in --data_dir data',
        ),
    ]:
        output = finish(start(folder, *flags), 1)
        assert words in output and 'Traceback' not in output


def test_benchmark_compares_equal_vectors(folder):
    (folder / 'some.tsv').write_text('list file parser return value\tTable\n')
    embedder = load_embedder(str(folder / 'run'), representation=Representation(clean=True))
    prompts = [
        make_candidate_prompt(one, embedder.prompt)
        for one in read_candidates([folder / 'some.tsv'], TEMPLATE)
    ]
    found = measure(embedder, sentences(10, words=3), prompts, 1)
    assert found['difference'] < 1e-5 and found['ratio'] > 0 and found['ratio_of_whole'] > 0
    tokens = {name: row['tokens'] for name, row in found['sides'].items()}
    assert tokens['shared'] <= tokens['none'] < tokens['whole'] - 16
