r"""Checks that this code computes and runs correctly on the devices of this machine.

Example:
  python launch/tpu/accept.py --output runs/acceptance
  python launch/tpu/start.py --name cpt-l --program tpu/accept -- \
      --output=/mnt/bucket/acceptance --topology=v5p:4x4x4

The program compares the attention kernel with masked attention, forward and backward in bfloat16;
trains a small model for 20 steps and compares the losses with those of the CPU; stops a run by
SIGTERM, resumes it and compares it bitwise; and measures tokens per second and MFU. With
--topology, it compares the time of a step with the plan. On a slice with several hosts, start it on
all of them with the same --output on a shared disk. Flags after -- are those of launch/train.py for
all runs, such as other sizes. The program writes acceptance.json and index.html, and exits with
status 1 if a check failed. It was run on CPUs.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from cpt_jax.cli.program import run_program, take_flags_after_dashes
from cpt_jax.pod.acceptance import runs
from cpt_jax.pod.acceptance.check import Check, count_failed
from cpt_jax.pod.acceptance.page import render_acceptance
from cpt_jax.runtime.errors import EXIT_MISTAKE, UserError
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.paths import is_on_bucket

_OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder for the results and the runs, new or empty.', required=True
)
_TOPOLOGY = flags.DEFINE_string(
    'topology', '', 'Slice of this machine, such as v5p:4x4x4, to compare with its plan.'
)
_STEPS = flags.DEFINE_integer('steps', 20, 'Steps of the small runs.', lower_bound=9)
_PART = flags.DEFINE_enum(
    'part', 'all', ['all', 'attention'], 'attention: only the kernels, in this process.'
)
_ATTENTION = 'attention.json'
_TRAIN_FLAGS: list[str] = []  # flags after --; filled before absl parses the others


def main() -> int:
    if is_on_bucket(_OUTPUT.value):
        raise UserError(
            f'--output {_OUTPUT.value}: must be a folder; on a pod, of the mounted bucket'
        )
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    if _PART.value == 'attention':
        _write_attention(output)
        return 0
    if found := [path.name for path in output.iterdir()]:
        raise UserError(f'--output {output}: has {found[0]}; give a new or empty folder')
    # Only children use the devices: a TPU belongs to one process.
    runs.run_to_end('tpu/accept.py', [f'--output={output}', '--part=attention'])
    machine, checks = _read_attention(output)
    checks += _train_and_compare(output, machine['platform'])
    content = {'machine': machine, 'checks': [dataclasses.asdict(check) for check in checks]}
    write_atomically(output / 'acceptance.json', json.dumps(content, indent=2) + '\n')
    write_atomically(output / 'index.html', render_acceptance(machine, checks))
    for check in checks:
        print(f'{check.status:>7}  {check.name}: {check.measured} ({check.expected})')
    print(f'{output / "index.html"} has the page', flush=True)
    return EXIT_MISTAKE if count_failed(checks) else 0


def _write_attention(output: Path) -> None:
    """Writes the machine and the checks of its kernels. All processes write the same machine."""
    import jax

    from cpt_jax.pod.acceptance.attention import check_attention
    from cpt_jax.runs.code_version import get_code_version
    from cpt_jax.runtime.multihost import exit_together, join_processes

    join_processes()
    with exit_together():
        device = jax.devices()[0]
        checks = check_attention(128 if device.platform == 'cpu' else 512)
        machine = {
            'device': device.device_kind,
            'platform': device.platform,
            'devices': len(jax.devices()),
            'hosts': jax.process_count(),
            'JAX': jax.__version__,
            'Python': sys.version.split()[0],
            'code': get_code_version(),
        }
        content = {'machine': machine, 'checks': [dataclasses.asdict(check) for check in checks]}
        write_atomically(output / _ATTENTION, json.dumps(content))


def _read_attention(output: Path) -> tuple[dict, list[Check]]:
    content = json.loads((output / _ATTENTION).read_text())
    return content['machine'], [Check(**check) for check in content['checks']]


def _train_and_compare(output: Path, platform: str) -> list[Check]:
    steps = f'--config.train.steps={_STEPS.value}'
    flags_of_run = runs.replace_flags([*runs.SMALL, steps], _TRAIN_FLAGS)
    rows = runs.train_run(str(output / 'run'), flags_of_run)
    # XLA_FLAGS of the user may be unknown to the CPU's compiler.
    on_cpu = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    reference = runs.train_run(str(output / 'cpu'), flags_of_run, on_cpu)
    checks = [runs.check_losses(rows, reference)]
    checks += runs.check_preemption(str(output / 'stopped'), flags_of_run, rows)
    return checks + runs.describe_speed(rows, _make_plan(output, flags_of_run, platform))


def _make_plan(output: Path, flags_of_run: list[str], platform: str) -> dict | None:
    if not _TOPOLOGY.value or platform != 'tpu':
        return None
    path = output / 'plan.json'
    command = [f'--topology={_TOPOLOGY.value}', f'--json={path}', *flags_of_run]
    runs.run_to_end('plan.py', command, {'JAX_PLATFORMS': 'cpu'})
    return json.loads(path.read_text())


def run() -> None:
    """Runs the program launch/tpu/accept.py."""
    _TRAIN_FLAGS.extend(take_flags_after_dashes())
    run_program(main)
