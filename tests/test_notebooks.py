"""Executes the notebooks from top to bottom on a small model."""

import json
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.embed.test_embedder import write_run
from tests.evals.senteval_files import write_sst

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def model(tmp_path_factory, tokenizer) -> Path:
    return write_run(
        tmp_path_factory.mktemp('notebooks') / 'run', tokenizer, init='passthrough', pooling='mean'
    )


def execute(name: str, **parameters) -> str:
    """Runs a notebook with these values in its parameters cell; returns what its cells print."""
    notebook = nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)
    (cell,) = (cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', []))
    names = {line.split(' = ')[0] for line in cell.source.splitlines() if ' = ' in line}
    assert parameters.keys() <= names
    cell.source += ''.join(f'\n{key} = {value!r}' for key, value in parameters.items())
    nbclient.NotebookClient(
        notebook, timeout=300, resources={'metadata': {'path': str(ROOT / 'notebooks')}}
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs
    ]
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 1
    return ''.join(output.text for output in outputs if output.get('name') == 'stdout')


def test_probe_notebook_finds_the_labels(model, tmp_path):
    write_sst(tmp_path / 'senteval' / 'SST' / 'binary')
    output = execute('probe', MODEL=str(model), DATA_DIR=str(tmp_path), TRAIN_SENTENCES=150)
    assert 'train: 150 of 200 sentences' in output
    assert 'test: 80 of 80 sentences, 50.0% positive' in output
    scores = {
        line[:26].strip(): float(line[26:].strip('% '))
        for line in output.splitlines()
        if line.rstrip().endswith('%')
    }
    # In this data, a single word predicts the label in 65 % of cases.
    assert scores['majority label'] == 50
    assert scores['linear probe'] > 70


def test_search_notebook_finds_code_and_text(model, tmp_path):
    (tmp_path / 'one.py').write_text(
        'def read_table(path):\n    text = open(path).read()\n    rows = text.split()\n    return '
        'rows\n'
    )
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'two.md').write_text(
        'A list of values in a table with columns.\n\nThe parser reads a file and its names '
        'again.\n'
    )
    output = execute('search', MODEL=str(model), FOLDER=str(tmp_path), QUERIES=['table of values'])
    assert '3 of 3 texts of 2 files' in output
    found = output.split('\ntable of values\n')[1].splitlines()[:3]
    assert {line.split()[1] for line in found} == {'one.py:1', 'two.md:1', 'two.md:3'}


def test_prompteol_notebook_compares_the_representations(tmp_path):
    model = tmp_path / 'small'
    shutil.copytree(ROOT / 'tests' / 'fixtures' / 'old_runs' / 'llama_model', model)
    config = json.loads((model / 'config.json').read_text())
    # A demonstration has more than 96 tokens of this vocabulary.
    (model / 'config.json').write_text(json.dumps(config | {'max_position_embeddings': 512}))
    folder = tmp_path / 'senteval' / 'STS' / 'STSBenchmark'
    folder.mkdir(parents=True)
    rows = [f'a\tb\tc\t{i}\t{i % 5}.0\tlist file\tlist {"parser " * i}value' for i in range(9)]
    (folder / 'sts-dev.csv').write_text('\n'.join(rows) + '\n')
    output = execute(
        'prompteol',
        MODEL='no/such/model',
        SMALL_MODEL=str(model),
        DATA_DIR=str(tmp_path),
        PAIRS=6,
        SENTENCES=['list file', 'a table of values'],
    )
    assert 'model: small' in output
    prompt = 'This sentence : "list file." means in one word:"'
    assert f'prompteol      {prompt}\n' in output
    names = [line.split()[0] for line in output.splitlines() if line.endswith(' on 6 pairs')]
    assert names == ['last', 'mean', 'prompt', 'prompteol', 'demonstration']


def test_notebooks_have_a_badge_and_no_outputs():
    for path in sorted((ROOT / 'notebooks').glob('*.ipynb')):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == 'code':
                assert not cell.outputs
                assert cell.execution_count is None
        title = notebook.cells[0].source
        assert f'notebooks/{path.name})' in title
        assert 'colab-badge' in title
