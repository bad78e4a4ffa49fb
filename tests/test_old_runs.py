"""Tests that runs written by earlier code still load, evaluate, export and resume.

tests/fixtures/old_runs/README.md describes the runs. Results are compared with those of the earlier
code: bitwise on the kind of machine on which they were computed, within rounding elsewhere.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.load import load_embedder
from cpt_jax.evals.registry import find_tasks
from cpt_jax.evals.run import run_tasks
from cpt_jax.exporting.adapter import export_adapter
from cpt_jax.exporting.directory import export
from cpt_jax.origin.earlier_run import find_run
from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import Representation
from cpt_jax.training import loop, resolve
from cpt_jax.training.sections import SECTION_FUNCTIONS, Train
from cpt_jax.training.setup import set_up
from cpt_jax.training.timing import TIMING_FIELDS

OLD_RUNS = Path(__file__).parent / 'fixtures' / 'old_runs'
EXPECTED = json.loads((OLD_RUNS / 'expected.json').read_text())
ORIGINAL_FOLDER = '/fixture_runs'
CONTRASTIVE = ('scratch', 'bert', 'lora')
EXPORT_OPTIONS = {'dtype': 'float32', 'shard_bytes': 10**9, 'license_id': 'unknown'}


def describe_machine() -> dict[str, str]:
    """Returns the CPU model, a hash of its flags, and the JAX version: rounding depends on them."""
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines()
    except OSError:
        return {}
    values = {
        key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)
    }
    flags = ' '.join(sorted(values.get('flags', '').split()))
    hashed = hashlib.sha256(flags.encode()).hexdigest()
    return {'cpu': values.get('model name', ''), 'flags': hashed, 'jax': jax.__version__}


SAME_MACHINE = describe_machine() == EXPECTED['machine']


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and bytes, ordered by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f'{name} {array.dtype} {list(array.shape)}\n'.encode() + array.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """A copy of all runs, with the path of the LoRA run's base adjusted.

    As when the runs were written, the folder is the working directory, and there is one device.
    """
    folder = tmp_path_factory.mktemp('old') / 'runs'
    shutil.copytree(OLD_RUNS, folder)
    metadata = folder / 'lora' / 'checkpoints' / '2' / '_CHECKPOINT_METADATA'
    metadata.write_text(metadata.read_text().replace(ORIGINAL_FOLDER, str(folder)))
    devices = jax.devices()[:1]
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: devices)
        yield folder


@pytest.fixture(scope='module')
def get_embedder(runs):
    """A function that returns a run's embedder at step 2, with the text cleaning of evaluations."""
    return functools.cache(
        lambda run: load_embedder(f'{run}@2', representation=Representation(clean=True))
    )


def load_expected(run: str, folder: Path) -> dict:
    """Returns the stored results of a run, with the paths of its copy in `folder`."""
    return json.loads(json.dumps(EXPECTED['runs'][run]).replace(ORIGINAL_FOLDER, str(folder)))


def check_metrics(found: dict[str, float], expected: dict[str, float], rtol: float) -> None:
    """Asserts that metrics are equal: bitwise on the same kind of machine, else within `rtol`."""
    if SAME_MACHINE:
        assert found == expected
    assert found == pytest.approx(expected, rel=rtol, abs=rtol)


@pytest.mark.parametrize('run', CONTRASTIVE)
def test_vectors_are_the_same(runs, get_embedder, run):
    embed: Embedder = get_embedder(run)
    if embed.prompt:
        embed = embed.with_prompt(dataclasses.replace(embed.prompt, clean=False))
    for side, texts in EXPECTED['texts'].items():
        vectors = embed(texts, side)
        expected = np.array(EXPECTED['runs'][run]['vectors'][side], np.float32)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        if SAME_MACHINE:
            np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize('run', CONTRASTIVE)
def test_evaluations_are_the_same(runs, get_embedder, run, tmp_path):
    """Settings are compared too: with equal settings, an earlier evaluation is resumed and not
    started again.
    """
    embed = get_embedder(run)
    expected = load_expected(run, runs)
    assert json.loads(json.dumps(embed.settings)) == expected['settings']
    tasks = find_tasks('data')
    chosen = [tasks[name] for name in expected['tasks']]
    results = run_tasks(embed, embed.model_name, embed.settings, chosen, epath.Path(tmp_path))
    for name, metrics in expected['tasks'].items():
        found = results['tasks'][name]['metrics']
        # Three of the 16 pairs are equal texts, whose cosines differ by rounding (6e-8), so on
        # another CPU they have another order, and Spearman's correlation of ranks is another.
        if not SAME_MACHINE:
            assert found.keys() == metrics.keys()
            found.pop('spearman', None)
            metrics.pop('spearman', None)
        check_metrics(found, metrics, 1e-5)


@pytest.mark.parametrize('run', CONTRASTIVE)
def test_exports_are_the_same(runs, run, tmp_path):
    for kind, files in EXPECTED['runs'][run]['exports'].items():
        output = tmp_path / kind
        if kind == 'adapter':
            export_adapter(f'{run}@2', output)
        else:
            export(f'{run}@2', output, **EXPORT_OPTIONS)
        written = sorted(output.rglob('*.safetensors'))
        assert [str(path.relative_to(output)) for path in written] == [*files]
        # Merging LoRA weights multiplies matrices, so its rounding depends on the machine.
        is_merged = run == 'lora' and kind != 'adapter'
        if SAME_MACHINE or not is_merged:
            assert {name: hash_arrays(load_file(output / name)) for name in files} == files


def test_language_model_is_still_not_exported(runs, tmp_path):
    with pytest.raises(UserError) as refusal:
        export('language_model', tmp_path / 'out', **EXPORT_OPTIONS)
    # Only the beginning is compared; the rest of the message, its advice, may change.
    start = '--model language_model: a language model (objective=lm), whose states were not trained'
    assert EXPECTED['runs']['language_model']['export_refused'].startswith(f'error: {start}')
    assert str(refusal.value).startswith(start)


@dataclasses.dataclass(frozen=True)
class LaterTrain(Train):
    """The `train` section of a future version, with a key that old runs lack."""

    later: int = 0


@pytest.mark.parametrize('run', EXPECTED['runs'])
def test_old_runs_resume_with_a_new_key_at_its_default(runs, run, monkeypatch):
    monkeypatch.setitem(SECTION_FUNCTIONS, 'train', LaterTrain)
    monkeypatch.setattr(resolve, 'Train', LaterTrain)
    config = load_config(f'{run}.py')
    config['train']['later'] = 0
    assert not [line for line in set_up(config, Path(run)).changes if 'later' in line]
    assert set_up(config, Path(run)).data.equal_texts == 'stripped'
    config['train']['later'] = 1
    with pytest.raises(UserError, match=r'train\.later was 0 and is 1'):
        set_up(config, Path(run))


@pytest.mark.parametrize('run', EXPECTED['runs'])
def test_run_resumes_with_the_same_results(runs, run):
    expected = EXPECTED['runs'][run]
    config = load_config(f'{run}.py')
    config['train']['steps'] = 4
    assert loop.train(config, Path(run)) == 0
    rows = [json.loads(line) for line in Path(run, 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [1, 2, 3, 4]
    for row, old_row in zip(rows, expected['rows'], strict=True):
        metrics = {key: value for key, value in row.items() if key not in TIMING_FIELDS}
        assert metrics.keys() == old_row.keys()
        if SAME_MACHINE:
            assert metrics == old_row
        assert row['loss'] == pytest.approx(old_row['loss'], abs=1e-5)
    parameters = load_parameters(Path(run), 4)
    assert len(parameters) == expected['parameters']['count']
    # Batches of several processes would change, also when the run is resumed once more.
    for step in (2, 4):
        assert find_run(f'{run}@{step}', '--model').provenance.agrees_on_rows is False
    for name, total in expected['parameters']['sums'].items():
        assert parameters[name].astype(np.float64).sum() == pytest.approx(total, abs=1e-3)
    if SAME_MACHINE:
        assert hash_arrays(parameters) == expected['parameters']['sha256']


def load_parameters(run: Path, step: int) -> dict[str, np.ndarray]:
    """Returns all parameters of a checkpoint, by name."""
    path = (run / 'checkpoints' / str(step)).absolute()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = ocp.metadata(path).metadata
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    state = ocp.load_checkpointables(path, {'state': abstract})['state']
    return dict(flatten(jax.tree.map(np.asarray, state['params'])))
