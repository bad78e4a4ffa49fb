"""launch/mine.py as a user runs it: two devices, training on the rows, and wrong flags."""

import json
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.embed.load import load_embedder
from tests.conftest import sentences
from tests.embed.test_embedder import write_run
from tests.programs import finish, run_program, start_program


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a run, pairs and a corpus."""
    folder = tmp_path_factory.mktemp('mine')
    write_run(folder / 'run', tokenizer)
    xs, ys, corpus = (list(dict.fromkeys(sentences(90, seed))) for seed in (1, 2, 3))
    rows = [{'x': x, 'y': y, 'id': str(i)} for i, (x, y) in enumerate(zip(xs, ys, strict=False))]
    (folder / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / 'corpus.txt').write_text(''.join(f'{text}\n' for text in corpus))
    return folder


def test_negatives_are_the_nearest_documents_below_the_share(folder):
    flags = '--range=1:20', '--negatives=3', '--max_share=0.9', '--corpus=corpus.txt'
    given = '--model=run', '--data=pairs.jsonl', '--output=out/mined.jsonl', *flags
    output = finish(start_program('mine', *given, cwd=folder, devices=2))
    assert 'written to out/mined.jsonl and out/mined.report.txt' in output
    assert sorted(path.name for path in (folder / 'out').iterdir()) == [
        'mined.jsonl',
        'mined.report.txt',
    ]
    rows = [json.loads(line) for line in (folder / 'out/mined.jsonl').read_text().splitlines()]
    embed = load_embedder(str(folder / 'run'))
    texts = (folder / 'corpus.txt').read_text().splitlines()
    documents = list(dict.fromkeys([*texts, *(row['y'] for row in rows)]))
    vectors = dict(zip(documents, embed(documents, 'y'), strict=True))
    queries = embed([row['x'] for row in rows], 'x')
    for row, query in zip(rows, queries, strict=True):
        scores = {text: float(query @ vector) for text, vector in vectors.items()}
        highest = scores[row['y']] - abs(scores[row['y']]) * 0.1
        best = sorted({*documents} - {row['x'], row['y']}, key=lambda text: -scores[text])[:22]
        # Scores of this process differ by rounding, so that texts near the limit may be either.
        sure = [text for text in best if scores[text] < highest - 1e-5]
        assert len(row['negatives']) == min(3, max(len(sure) - 1, 0))
        np.testing.assert_allclose(
            row['scores'], [scores[row['y']], *(scores[text] for text in row['negatives'])],
            atol=1e-5,
        )  # fmt: skip
        assert row['negatives'] == sure[1:4]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--output=a.csv',), '--output a.csv: must end in .jsonl'),
        (('--range=10',), '--range 10: must be FIRST:LAST, such as 10:100'),
        (('--data=missing',), '--data missing: no such file or folder; for a data set of Tensor'),
        (('--model=', '--bm25=2'), '--model: is missing; without a model, all negatives are from'),
        (('--model=', '--bm25=7', '--margin=0.1'), '--margin: needs the scores of a model: add'),
    ],
)
def test_wrong_flags_are_one_line_errors(folder, flags, message):
    given = '--model=run', '--data=pairs.jsonl', '--output=rows.jsonl'
    status, output, errors = run_program('mine', *given, *flags, cwd=folder)
    assert (status, output) == (1, '')
    assert errors.startswith(f'error: {message}') and errors.count('\n') == 1
    assert not list(folder.glob('rows*'))


def test_help_shows_example_and_flags(tmp_path):
    status, output, errors = run_program('mine', '--help', cwd=tmp_path)
    assert (status, errors) == (0, '')
    names = 'model data output range negatives max_share margin sampling bm25 reranker_scores'
    assert 'python launch/mine.py --model' in output
    assert all(f'--{name}:' in output for name in names.split())
