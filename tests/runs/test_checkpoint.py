"""Checkpoints: restored bitwise, and never incomplete."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cpt_jax.runs.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    from_nested_dict,
    list_steps,
    load_params,
    read_latest_metadata,
    read_metadata,
    read_tokenizer_file,
    to_nested_dict,
)
from cpt_jax.runs.reference import find_checkpoint, use_newest_intact
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh

METADATA = {
    'config': {
        'model': {'width': 8},
        'tokenizer': {'closing': 'own'},
        'list': [1, 2.5, 'x', None, True],
    },
    'code': '1',
}


class Layer(nnx.Module):
    """A module with a parameter called `value`, as in attention."""

    def __init__(self, random):
        self.value = nnx.Param(random.normal(size=(64, 32)).astype(np.float32))
        self.bias = nnx.Param(random.normal(size=(4,)).astype(np.float32))


class State(NamedTuple):
    step: Any
    params: Any
    optimizer: Any


def make_state(seed: int, mesh: jax.sharding.Mesh | None = None) -> State:
    """Returns parameters and their Adam moments, with matrices sharded over fsdp and tensor.

    Without a mesh, the arrays are numpy arrays.
    """
    params = {
        'a': Layer(np.random.default_rng(seed)),
        'b': [Layer(np.random.default_rng(seed + 1)), np.float32(seed)],
    }
    moments = optax.ScaleByAdamState(
        np.int32(seed), jax.tree.map(lambda w: w + 1, params), jax.tree.map(lambda w: w + 2, params)
    )
    state = State(np.int32(seed), params, (moments, optax.EmptyState()))
    if mesh is None:
        return state

    def put(w: Any) -> jax.Array:
        spec = jax.P('fsdp', 'tensor') if np.ndim(w) == 2 else jax.P()
        return jax.device_put(w, jax.NamedSharding(mesh, spec))

    return jax.tree.map(put, state)


def make_abstract(state: State) -> State:
    """Returns the shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), state
    )


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


MESH = (2, 2, 2)


@pytest.fixture
def open_checkpoints(tokenizer):
    """Returns a function that opens a directory as Checkpoints; all are closed at the end."""
    opened = []

    def open_(
        directory: Path, every_steps: int = 2, keep_latest: int = 2, keep_every: int = 0
    ) -> Checkpoints:
        opened.append(
            Checkpoints(
                directory,
                tokenizer.file,
                METADATA,
                every_steps=every_steps,
                keep_latest=keep_latest,
                keep_every=keep_every,
            )
        )
        return opened[-1]

    yield open_
    for saved in opened:
        saved.close()


@pytest.fixture(scope='session')
def three(tmp_path_factory, tokenizer) -> Path:
    """Returns a directory with checkpoints 2, 4 and 6; the state of step s is make_state(s)."""
    directory = tmp_path_factory.mktemp('run') / 'checkpoints'
    saved = Checkpoints(
        directory, tokenizer.file, METADATA, every_steps=2, keep_latest=3, keep_every=0
    )
    for step in (2, 4, 6):
        saved.save(step, make_state(step, make_mesh(*MESH)))
    saved.close()
    return directory


@pytest.fixture
def run(three, tmp_path) -> Path:
    """Returns a copy of the checkpoints of `three`, in a run's directory."""
    return shutil.copytree(three, tmp_path / 'run' / 'checkpoints')


def damage(directory: Path, step: int | str) -> None:
    """Truncates the files with the arrays to half their size."""
    files = [path for path in (directory / str(step) / 'state').rglob('d/*') if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_nested_dict_has_plain_names_and_is_invertible():
    state = make_state(3)
    names = to_nested_dict(state)
    assert names['params']['a'].keys() == {'value', 'bias'}
    assert names['params']['b'].keys() == {'0', '1'}
    assert names['optimizer']['0'].keys() == {'count', 'mu', 'nu'}
    np.testing.assert_array_equal(
        names['optimizer']['0']['mu']['b']['0']['value'], state.optimizer[0].mu['b'][0].value[...]
    )
    assert len(jax.tree.leaves(names)) == len(jax.tree.leaves(state))
    assert_same(from_nested_dict(make_state(9), names), state)


@pytest.mark.parametrize('sizes', [(2, 2, 2), (8, 1, 1), (1, 4, 2)])
def test_state_is_restored_bitwise_on_any_mesh(run, open_checkpoints, sizes):
    wanted = make_abstract(make_state(0, make_mesh(*sizes)))
    step, state = open_checkpoints(run).restore(wanted)
    assert step == 6
    assert_same(state, make_state(6, make_mesh(*sizes)))
    assert [w.sharding for w in jax.tree.leaves(state)] == [
        w.sharding for w in jax.tree.leaves(wanted)
    ]


def test_metadata_and_tokenizer_are_stored_with_the_state(three, tokenizer):
    assert list_steps(three) == [2, 4, 6]
    assert read_metadata(three, 4) == METADATA
    assert read_tokenizer_file(three, 4) == tokenizer.file


def test_new_directory_has_no_checkpoints(tmp_path, open_checkpoints):
    saved = open_checkpoints(tmp_path / 'a' / 'checkpoints')
    assert saved.restore(make_abstract(make_state(0, make_mesh(*MESH)))) is None
    assert list_steps(tmp_path / 'a' / 'checkpoints') == list_steps(tmp_path / 'nowhere') == []


def test_save_is_due_at_multiples_and_saves_a_step_once(tmp_path, open_checkpoints):
    saved = open_checkpoints(tmp_path / 'checkpoints', every_steps=3, keep_latest=9)
    assert [step for step in range(1, 8) if saved.is_due(step)] == [3, 6]
    for step, value in [(3, 1.0), (5, 2.0), (5, 3.0)]:
        saved.save(step, {'w': np.full(2, value)})
    saved.close()
    assert list_steps(tmp_path / 'checkpoints') == [3, 5]
    step, state = open_checkpoints(tmp_path / 'checkpoints').restore({'w': np.zeros(2)})
    assert step == 5 and state['w'].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ('key', 'value', 'minimum'),
    [('every_steps', 0, 1), ('keep_latest', 0, 1), ('keep_every', -1, 0)],
)
def test_error_names_the_key_of_a_wrong_number(tmp_path, open_checkpoints, key, value, minimum):
    with pytest.raises(UserError, match=f'checkpoint.{key}={value}: must be {minimum} or more'):
        open_checkpoints(tmp_path / 'checkpoints', **{key: value})


@pytest.mark.parametrize(
    ('keep_latest', 'keep_every', 'expected'),
    [(1, 0, [7]), (2, 0, [6, 7]), (2, 4, [4, 6, 7]), (1, 3, [3, 6, 7])],
)
def test_latest_checkpoints_and_multiples_are_kept(
    tmp_path, open_checkpoints, keep_latest, keep_every, expected
):
    saved = open_checkpoints(tmp_path / 'checkpoints', 1, keep_latest, keep_every)
    for step in range(1, 8):
        saved.save(step, {'w': jnp.zeros(2)})
    saved.close()
    assert list_steps(tmp_path / 'checkpoints') == expected


def test_state_can_be_donated_right_after_save(tmp_path, open_checkpoints):
    mesh = make_mesh(*MESH)
    split = jax.NamedSharding(mesh, jax.P('fsdp', 'tensor'))
    host = {
        f'w{i}': np.random.default_rng(i).normal(size=(1024, 1024)).astype(np.float32)
        for i in range(4)
    }
    with jax.set_mesh(mesh):
        state = {name: jax.device_put(array.copy(), split) for name, array in host.items()}

        def addresses():
            return [
                shard.data.unsafe_buffer_pointer()
                for w in state.values()
                for shard in w.addressable_shards
            ]

        overwrite = (
            jax.jit(lambda state: jax.tree.map(lambda w: -w - 1, state), donate_argnums=0)
            .lower(state)
            .compile()
        )
        saved = open_checkpoints(tmp_path / 'checkpoints')
        before = set(addresses())
        saved.save(2, state)
        for _ in range(10):
            state = overwrite(state)
        jax.block_until_ready(state)
        assert before & set(addresses())  # the buffers were overwritten in place
        saved.close()
        step, restored = open_checkpoints(tmp_path / 'checkpoints').restore(make_abstract(state))
    assert_same(jax.device_get(restored), host)


# Earlier versions wrote checkpoints under a temporary name.
@pytest.mark.parametrize('name', ['8', '8.orbax-checkpoint-tmp-1234567'])
def test_incomplete_checkpoint_is_reported_and_not_used(run, open_checkpoints, capsys, name):
    shutil.copytree(run / '6', run / name)
    (run / name / 'commit_success.txt').unlink()
    assert list_steps(run) == [2, 4, 6]
    saved = open_checkpoints(run)
    assert capsys.readouterr().out == 'checkpoint 8 is incomplete: it is not used\n'
    assert saved.restore(make_abstract(make_state(0, make_mesh(*MESH))))[0] == 6
    saved.save(8, make_state(8, make_mesh(*MESH)))
    saved.close()
    assert list_steps(run) == [6, 8] and sorted(path.name for path in run.iterdir()) == ['6', '8']


def test_damaged_checkpoint_is_renamed_and_the_one_before_is_restored(
    run, open_checkpoints, capsys
):
    damage(run, 6)
    saved = open_checkpoints(run)
    step, state = saved.restore(make_abstract(make_state(0, make_mesh(*MESH))))
    assert step == 4
    assert_same(state, make_state(4, make_mesh(*MESH)))
    assert capsys.readouterr().out.startswith(
        'checkpoint 6 cannot be read: using the one before it ('
    )
    assert list_steps(run) == [2, 4] and (run / '6.unreadable' / 'state').is_dir()
    saved.save(6, make_state(60, make_mesh(*MESH)))  # the same step again
    saved.save(8, make_state(80, make_mesh(*MESH)))
    saved.close()
    assert list_steps(run) == [6, 8]
    damage(run, 8)
    step, state = open_checkpoints(run).restore(make_abstract(make_state(0, make_mesh(*MESH))))
    assert step == 6 and int(state.step) == 60


def test_nothing_is_renamed_if_all_checkpoints_are_damaged(run, open_checkpoints):
    for step in (2, 4, 6):
        damage(run, step)
    with pytest.raises(UserError, match=r'none of the checkpoints \[6, 4, 2\] can be read'):
        open_checkpoints(run).restore(make_abstract(make_state(0, make_mesh(*MESH))))
    assert list_steps(run) == [2, 4, 6]


def test_checkpoint_without_metadata_is_an_error_and_is_skipped(run):
    (run / '6' / '_CHECKPOINT_METADATA').write_text('')
    with pytest.raises(
        UserError,
        match='6 is damaged .*it has no metadata.*other checkpoints of the run: @2, @4',
    ):
        read_metadata(run, 6)
    assert read_latest_metadata(run)[0] == 4


@pytest.mark.parametrize('name', ['params.a.value', 'tokenizer', 'metadata'])
def test_every_flipped_bit_is_found(run, tokenizer, name):
    """Flips bits of what is loaded, wherever Orbax has stored it."""
    abstract = make_abstract(make_state(0, make_mesh(*MESH)).params)
    stored = {
        'params.a.value': np.asarray(make_state(6).params['a'].value[...])[:16, :16].tobytes(),
        'tokenizer': tokenizer.file[1],
        'metadata': b'"model": {"width": 8}',
    }
    path, start = find_bytes(run / '6', stored[name])
    data = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(stored[name]) * 8, size=20):
        flipped = bytearray(data)
        flipped[start + position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(
            DamagedCheckpoint, match=r'6 is damaged .*checkpoints of the run: @2, @4'
        ):
            read_metadata(run, 6)
            read_tokenizer_file(run, 6)
            load_params(run, 6, abstract)


def find_bytes(folder: Path, wanted: bytes) -> tuple[Path, int]:
    """Returns the file below a folder that contains some bytes, and their offset."""
    for path in sorted(folder.rglob('*')):
        if path.is_file() and wanted in path.read_bytes():
            return path, path.read_bytes().index(wanted)
    raise AssertionError('no file contains the bytes')


def test_only_references_without_a_step_use_an_older_checkpoint(run, capsys):
    damage(run, 6)
    abstract = make_abstract(make_state(0, make_mesh(*MESH)).params)

    def load(reference: str) -> Any:
        return use_newest_intact(
            reference, run, 6, lambda step: (step, load_params(run, step, abstract))
        )

    step, params = load(str(run.parent))
    assert step == 4
    assert_same(params, make_state(4, make_mesh(*MESH)).params)
    assert '6 is damaged' in capsys.readouterr().out
    with pytest.raises(DamagedCheckpoint, match='6 is damaged'):
        load(f'{run.parent}@6')


def test_checkpoint_of_an_earlier_version_has_no_checksums(run, capsys):
    path = run / '6' / '_CHECKPOINT_METADATA'
    content = json.loads(path.read_text())
    del content['custom_metadata']['crc32']
    path.write_text(json.dumps(content))
    assert read_metadata(run, 6) == METADATA
    assert capsys.readouterr().out.endswith('damaged values would not be noticed\n')


def test_parameters_are_loaded_without_the_rest_of_the_state(run):
    mesh = make_mesh(8, 1, 1)
    wanted = make_abstract(make_state(0, mesh)).params
    assert_same(load_params(run, 6, wanted), make_state(6, mesh).params)
    assert_same(load_params(run, 2, {'a': wanted['a']}), {'a': make_state(2, mesh).params['a']})


def test_missing_or_wider_parameter_is_an_error(run):
    mesh = make_mesh(8, 1, 1)
    wanted = make_abstract(make_state(0, mesh)).params
    with pytest.raises(KeyError, match='c'):
        load_params(run, 6, wanted | {'c': wanted['a']})
    wider = jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(
            (*w.shape, 2), w.dtype, sharding=jax.NamedSharding(mesh, jax.P())
        ),
        wanted,
    )
    with pytest.raises(KeyError):
        load_params(run, 6, wider)


def test_step_that_only_the_best_checkpoints_hold_is_found(tmp_path):
    """As in the base of a LoRA run that started from RUN@best:TASK."""
    (tmp_path / 'run' / 'best' / '7').mkdir(parents=True)
    with pytest.raises(UserError, match='no run with a checkpoint'):
        find_checkpoint(f'{tmp_path}/run@7', '--model')
    (tmp_path / 'run' / 'best' / '7' / 'commit_success.txt').touch()
    (tmp_path / 'run' / 'checkpoints').mkdir()
    assert find_checkpoint(f'{tmp_path}/run@7', '--model') == (tmp_path / 'run' / 'best', 7)


def test_reference_names_a_run_or_a_step(run, tmp_path, monkeypatch):
    assert find_checkpoint(str(run.parent), '--model') == (run, 6)
    assert find_checkpoint(f'{run.parent}@4', '--model') == (run, 4)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint('run/@2', '--model') == (run, 2)
    Path('empty').mkdir()
    Path('begun').mkdir()
    Path('begun/config.json').write_text('{}')
    for reference, expected in [
        (
            'nowhere',
            r'--model nowhere: no run with a checkpoint \(nowhere/checkpoints holds '
            r'none\), nor is there such a directory$',
        ),
        (
            'empty',
            r'--model empty: no run with a checkpoint .*, nor does it hold a pretrained '
            r'model: no config\.json',
        ),
        ('begun', r'--model begun: no run with a checkpoint \(begun/checkpoints holds none\)$'),
        ('run@5', '--model run@5: no such checkpoint; there are 2, 4, 6'),
        ('run@last', '--model run@last: no such checkpoint; there are 2, 4, 6'),
        ('', 'no run with a checkpoint'),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            find_checkpoint(reference, '--model')
        assert '\n' not in str(error.value)


def test_unreadable_and_incomplete_folders_are_no_checkpoints(run):
    (run / '6').rename(run / '6.unreadable')
    (run / '8.orbax-checkpoint-tmp-1').mkdir()
    assert list_steps(run) == [2, 4]
    assert find_checkpoint(str(run.parent), '--model') == (run, 4)
