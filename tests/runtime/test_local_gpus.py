import pytest

from cpt_jax.runtime import multihost
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.local_gpus import list_own_gpus

EIGHT = '0,1,2,3,4,5,6,7'


def make_slurm(index: int, tasks: str, visible: str, **others: str) -> dict[str, str]:
    return {
        'SLURM_PROCID': str(index),
        'SLURM_LOCALID': str(index),
        'SLURM_STEP_TASKS_PER_NODE': tasks,
        'CUDA_VISIBLE_DEVICES': visible,
        **others,
    }


def make_open_mpi(index: int, tasks: int) -> dict[str, str]:
    return {
        'OMPI_COMM_WORLD_LOCAL_RANK': str(index),
        'OMPI_COMM_WORLD_LOCAL_SIZE': str(tasks),
        'CUDA_VISIBLE_DEVICES': EIGHT,
    }


@pytest.fixture
def set_environment(monkeypatch, tmp_path):
    """Returns a function that sets the environment of a host with 8 GPUs."""
    for number in range(8):
        (tmp_path / f'0000:0{number}:00.0').mkdir()
    monkeypatch.setattr('cpt_jax.runtime.local_gpus._DRIVER', tmp_path)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)

    def set_variables(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({}, None),
        (make_slurm(0, '1', ''), None),
        (make_slurm(0, '1', EIGHT), [*range(8)]),
        (make_slurm(0, '1(x2)', EIGHT, SLURM_NODEID='1'), [*range(8)]),
        (make_slurm(1, '2', EIGHT), [4, 5, 6, 7]),
        (make_slurm(1, '8,2(x3)', EIGHT, SLURM_NODEID='3'), [4, 5, 6, 7]),
        (make_slurm(5, '8', EIGHT, SLURM_GPUS_ON_NODE='8'), [5]),
        # The launcher has given each process GPUs of its own.
        (make_slurm(5, '8', '0', SLURM_GPUS_ON_NODE='8'), [0]),
        (make_slurm(1, '2', '4,5,6,7', SLURM_STEP_GPUS=EIGHT), [0, 1, 2, 3]),
        # A step with two of the host's GPUs.
        (make_slurm(1, '2', '2,3', SLURM_STEP_GPUS='2,3', SLURM_GPUS_ON_NODE='8'), [1]),
        # The user has chosen two of the host's GPUs for both tasks, which cannot be told from four
        # GPUs of each task's own only if there are as many.
        (make_slurm(1, '8', '0,1', SLURM_GPUS_ON_NODE='8') | {'JAX_PLATFORMS': 'cpu'}, None),
        (make_open_mpi(0, 1), [*range(8)]),
        (make_open_mpi(1, 2), [4, 5, 6, 7]),
    ],
)
def test_processes_of_a_host_divide_its_gpus(variables, expected, set_environment):
    set_environment(variables)
    assert list_own_gpus() == expected


def test_all_gpus_of_the_driver_are_visible_by_default(set_environment, monkeypatch):
    set_environment(make_slurm(1, '2', EIGHT))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert list_own_gpus() == [4, 5, 6, 7]


def test_uneven_division_is_an_error(set_environment):
    set_environment(make_slurm(0, '3', EIGHT))
    with pytest.raises(UserError, match='3 processes on this host cannot divide its 8 GPUs'):
        list_own_gpus()


def test_gpus_are_passed_to_jax(set_environment, monkeypatch):
    set_environment(make_slurm(1, '2', EIGHT))
    passed = {}
    monkeypatch.setattr(multihost.jax.distributed, 'initialize', passed.update)
    multihost.join_processes()
    assert passed == {'local_device_ids': [4, 5, 6, 7]}
