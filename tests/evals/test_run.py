import json

import numpy as np
from etils import epath

from cpt_jax.evals.registry import find_tasks, select_tasks
from cpt_jax.evals.run import make_claim_path, run_tasks
from cpt_jax.search.bm25 import make_random_embed
from cpt_jax.storage.locks import try_lock
from tests.evals.senteval_files import write_sst
from tests.programs import run_program


def write_data(folder):
    (folder / 'codesearch').mkdir()
    words = ['open file', 'close socket', 'parse json', 'sort list', 'draw plot']
    rows = [
        {
            'docstring': f'Does {w}.',
            'code': f'void {w.replace(" ", "_")}() {{ a < b; }}',
            'language': 'java',
        }
        for w in words
    ]
    (folder / 'codesearch' / 'small.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows)
    )
    (folder / 'retrieval' / 'tiny' / 'qrels').mkdir(parents=True)
    for name, texts in (('corpus', words), ('queries', words[:2])):
        lines = [
            json.dumps({'_id': f'{name}{i}', 'text': text}) + '\n' for i, text in enumerate(texts)
        ]
        (folder / 'retrieval' / 'tiny' / f'{name}.jsonl').write_text(''.join(lines))
    (folder / 'retrieval' / 'tiny' / 'qrels' / 'test.tsv').write_text(
        'queries0\tcorpus0\t1\nqueries1\tcorpus1\t1\n'
    )
    return str(folder)


def letters(texts, side):
    """Returns normalized letter counts, which are enough to find a text again."""
    counts_NxD = np.array(
        [[text.lower().count(letter) for letter in 'abcdefghijklmnopqrstuvwxyz'] for text in texts],
        np.float32,
    )
    return counts_NxD / np.linalg.norm(counts_NxD, axis=1, keepdims=True)


def run_pattern(pattern, data_dir, output, embed=letters, model='runs/letters'):
    tasks = select_tasks(find_tasks(data_dir), [pattern], data_dir)
    return run_tasks(embed, model, {'step': 3}, tasks, epath.Path(output))


def test_results_and_report_collect_tasks(tmp_path):
    data_dir = write_data(tmp_path)
    run_pattern('codesearch/small', data_dir, tmp_path / 'out')
    run_pattern('retrieval/*', data_dir, tmp_path / 'out')
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert list(results['tasks']) == ['codesearch/small', 'retrieval/tiny']
    assert results['model'] == 'runs/letters' and results['settings'] == {'step': 3}
    for row in results['tasks'].values():
        assert (
            row['main_score']
            == row['metrics'][row['settings']['main_metric']]
            > row['baselines']['random'][row['settings']['main_metric']]
        )
    assert results['tasks']['retrieval/tiny']['metrics'] == {
        'ndcg@10': 1.0,
        'mrr@10': 1.0,
        'recall@100': 1.0,
    }
    page = (tmp_path / 'out' / 'report' / 'index.html').read_text()
    assert 'Examples: codesearch/small' in page and 'Examples: retrieval/tiny' in page
    assert 'void open_file() { a &lt; b; }' in page


def test_another_model_replaces_the_results(tmp_path, capsys):
    data_dir = write_data(tmp_path)
    run_pattern('codesearch/small', data_dir, tmp_path / 'out')
    results = run_pattern(
        'retrieval/tiny', data_dir, tmp_path / 'out', make_random_embed(0), model='runs/other'
    )
    assert list(results['tasks']) == ['retrieval/tiny']
    assert 'is replaced' in capsys.readouterr().out
    assert 'codesearch/small' not in (tmp_path / 'out' / 'report' / 'index.html').read_text()


def test_maps_of_another_model_are_removed(tmp_path):
    write_sst(tmp_path / 'senteval' / 'SST' / 'binary')
    data_dir, maps = write_data(tmp_path), tmp_path / 'out' / 'report' / 'maps.json'

    def page():
        return (tmp_path / 'out' / 'report' / 'index.html').read_text()

    run_pattern('zeroshot/SST2', data_dir, tmp_path / 'out')
    assert list(json.loads(maps.read_text())) == ['SST2, test'] and page().count('<circle') == 80
    run_pattern('retrieval/tiny', data_dir, tmp_path / 'out')
    assert 'SST2, test: PCA' in page()
    assert 'map' not in (tmp_path / 'out' / 'results.json').read_text()
    run_pattern('retrieval/tiny', data_dir, tmp_path / 'out', model='runs/other')
    assert json.loads(maps.read_text()) == {} and '<circle' not in page()


def test_task_is_scored_again_only_when_something_changes(tmp_path, capsys):
    data_dir, asked = write_data(tmp_path), []

    def run(*, model='runs/letters', k=100, **flags) -> list[str]:
        def embed(texts, side):
            asked.append(side)
            return letters(texts, side)

        asked.clear()
        tasks = select_tasks(find_tasks(data_dir, k=k), ['retrieval/tiny'], data_dir)
        run_tasks(embed, model, {'step': 3}, tasks, epath.Path(tmp_path / 'out'), **flags)
        return asked

    assert run() and not run()
    assert 'retrieval/tiny: already scored; give --again to score it again' in (
        capsys.readouterr().out
    )
    assert run(again=True) and not run()
    assert run(k=50) and not run(k=50)
    assert 'retrieval/tiny: the earlier score, of other data or options, is replaced' in (
        capsys.readouterr().out
    )
    assert run(model='runs/other') and not run(model='runs/other')
    (tmp_path / 'retrieval' / 'tiny' / 'qrels' / 'test.tsv').write_text('queries0\tcorpus0\t1\n')
    with try_lock(make_claim_path(epath.Path(tmp_path / 'out'), 'runs/other', 'retrieval/tiny')):
        assert not run(model='runs/other')
    assert 'retrieval/tiny: another program is scoring it' in capsys.readouterr().out
    assert run(model='runs/other') and not run(model='runs/other')


def test_program_runs_from_any_directory(tmp_path):
    _, said, _ = run_program('evaluate', '--help', cwd=tmp_path)
    assert 'Scores a model on benchmarks' in said and '--data_dir' in said
    for flags, message in (
        (
            ['--model', str(tmp_path), '--tasks', 'retrieval/nope'],
            'error: --tasks retrieval/nope: no such task; available: codesearch/',
        ),
        (['--model', str(tmp_path / 'none')], 'error: --model'),
        (['--tasks', 'codesearch/python_source'], 'error: '),
    ):
        status, _, errors = run_program('evaluate', *flags, cwd=tmp_path)
        assert status == 1 and errors.startswith(message), errors
        assert errors.count('\n') == 1
