"""Runs that earlier code wrote: they load, evaluate, export and go on as they did on that day.

tests/fixtures/old_runs/README.md tells what is there. On the kind of machine that it was written on
all is compared to the bit; elsewhere within rounding, which compiled programs carry on.
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
from cpt_jax.runs.config import flatten
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import Representation
from cpt_jax.training import loop, resolve
from cpt_jax.training.sections import FUNCTIONS, Train
from cpt_jax.training.setup import set_up

OLD_RUNS = Path(__file__).parent / 'fixtures' / 'old_runs'
EXPECTED = json.loads((OLD_RUNS / 'expected.json').read_text())
WRITTEN_IN = '/fixture_runs'
CONTRASTIVE = ('scratch', 'bert', 'lora')
WRITING = {'dtype': 'float32', 'shard_bytes': 10**9, 'license_id': 'unknown'}
TIMES = {'seconds', 'paused_seconds', 'pairs_per_second', 'tokens_per_second'}


def machine() -> dict[str, str]:
    """The kind of CPU and JAX: what bits depend on."""
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


SAME_MACHINE = machine() == EXPECTED['machine']


def sha256(arrays: dict[str, np.ndarray]) -> str:
    """Of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f'{name} {array.dtype} {list(array.shape)}\n'.encode() + array.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """A copy of all, in which the LoRA run finds its base.

    It is the working directory, and there is one device, as where they were written.
    """
    folder = tmp_path_factory.mktemp('old') / 'runs'
    shutil.copytree(OLD_RUNS, folder)
    about = folder / 'lora' / 'checkpoints' / '2' / '_CHECKPOINT_METADATA'
    about.write_text(about.read_text().replace(WRITTEN_IN, str(folder)))
    found = jax.devices()[:1]
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: found)
        yield folder


@pytest.fixture(scope='module')
def embedder_of(runs):
    """A run's embedder at step 2, made once; texts in a template are cleaned, as evaluations do."""
    return functools.cache(
        lambda run: load_embedder(f'{run}@2', representation=Representation(clean=True))
    )


def expected(run: str, folder: Path) -> dict:
    """What was measured on that day, with paths as they are now."""
    return json.loads(json.dumps(EXPECTED['runs'][run]).replace(WRITTEN_IN, str(folder)))


def check(found: dict[str, float], wanted: dict[str, float], rtol: float) -> None:
    if SAME_MACHINE:
        assert found == wanted
    assert found == pytest.approx(wanted, rel=rtol, abs=rtol)


@pytest.mark.parametrize('run', CONTRASTIVE)
def test_vectors_are_the_same(runs, embedder_of, run):
    embed: Embedder = embedder_of(run)
    if embed.prompt:
        embed = embed.reading(dataclasses.replace(embed.prompt, clean=False))
    for side, texts in EXPECTED['texts'].items():
        vectors = embed(texts, side)
        wanted = np.array(EXPECTED['runs'][run]['vectors'][side], np.float32)
        np.testing.assert_allclose(vectors, wanted, atol=1e-6)
        if SAME_MACHINE:
            np.testing.assert_array_equal(vectors, wanted)


@pytest.mark.parametrize('run', CONTRASTIVE)
def test_evaluations_are_the_same(runs, embedder_of, run, tmp_path):
    """Settings too: an evaluation that was begun on that day goes on, and does not begin again."""
    embed, wanted = embedder_of(run), expected(run, runs)
    assert json.loads(json.dumps(embed.settings)) == wanted['settings']
    tasks = find_tasks('data')
    chosen = [tasks[name] for name in wanted['tasks']]
    results = run_tasks(embed, embed.model_name, embed.settings, chosen, epath.Path(tmp_path))
    for name, metrics in wanted['tasks'].items():
        check(results['tasks'][name]['metrics'], metrics, 1e-5)


@pytest.mark.parametrize('run', CONTRASTIVE)
def test_exports_are_the_same(runs, run, tmp_path):
    for way, files in EXPECTED['runs'][run]['exports'].items():
        if way == 'adapter':
            export_adapter(f'{run}@2', tmp_path / way)
        else:
            export(f'{run}@2', tmp_path / way, **WRITING)
        written = sorted((tmp_path / way).rglob('*.safetensors'))
        assert [str(path.relative_to(tmp_path / way)) for path in written] == [*files]
        if run != 'lora' or way == 'adapter' or SAME_MACHINE:  # merging adds a product of matrices
            assert {name: sha256(load_file(tmp_path / way / name)) for name in files} == files


def test_a_language_model_is_still_not_exported(runs, tmp_path):
    with pytest.raises(UserError) as refused:
        export('language_model', tmp_path / 'out', **WRITING)
    # How the message goes on, and what it advises, may change.
    says = '--model language_model: a language model (objective=lm), whose states were not trained'
    assert EXPECTED['runs']['language_model']['export_refused'].startswith(f'error: {says}')
    assert str(refused.value).startswith(says)


@dataclasses.dataclass(frozen=True)
class LaterTrain(Train):
    """The `train` section of a later version, with a key that no run has yet."""

    later: int = 0


@pytest.mark.parametrize('run', EXPECTED['runs'])
def test_a_new_key_with_a_neutral_default_stops_no_run(runs, run, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, 'train', LaterTrain)
    monkeypatch.setattr(resolve, 'Train', LaterTrain)
    config = load_config(f'{run}.py')
    config['train']['later'] = 0
    assert not [line for line in set_up(config, Path(run)).changes if 'later' in line]
    config['train']['later'] = 1
    with pytest.raises(UserError, match=r'train\.later was 0 and is 1'):
        set_up(config, Path(run))


@pytest.mark.parametrize('run', EXPECTED['runs'])
def test_a_run_goes_on(runs, run):
    wanted = EXPECTED['runs'][run]
    config = load_config(f'{run}.py')
    config['train']['steps'] = 4
    assert loop.train(config, Path(run)) == 0
    rows = [json.loads(line) for line in Path(run, 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [1, 2, 3, 4]
    for row, old in zip(rows, wanted['rows'], strict=True):
        kept = {key: value for key, value in row.items() if key not in TIMES}
        assert kept.keys() == old.keys()
        if SAME_MACHINE:
            assert kept == old
        assert row['loss'] == pytest.approx(old['loss'], abs=1e-5)
    flat = parameters(Path(run), 4)
    assert len(flat) == wanted['parameters']['count']
    for name, total in wanted['parameters']['sums'].items():
        assert flat[name].astype(np.float64).sum() == pytest.approx(total, abs=1e-3)
    if SAME_MACHINE:
        assert sha256(flat) == wanted['parameters']['sha256']


def parameters(run: Path, step: int) -> dict[str, np.ndarray]:
    """All parameters of a checkpoint, by name."""
    path = (run / 'checkpoints' / str(step)).absolute()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = ocp.metadata(path).metadata
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )
    state = ocp.load_checkpointables(path, {'state': abstract})['state']
    return dict(flatten(jax.tree.map(np.asarray, state['params'])))
