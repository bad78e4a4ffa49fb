"""The checks of launch/tpu/accept.py, on CPUs and with results that must fail."""

import json
import types
from pathlib import Path

import pytest

from cpt_jax.pod.acceptance import attention, runs
from cpt_jax.pod.acceptance.check import FAILED, PASSED, SKIPPED, Check, compare
from cpt_jax.pod.acceptance.page import render_acceptance
from tests.programs import start_program
from tests.training.conftest import write_config


def make_rows(losses: list[float]) -> list[dict[str, float]]:
    times = {'step_seconds_max': 0.5, 'tokens_per_second': 1000.0, 'mfu': 0.4}
    return [{'step': i + 1, 'loss': loss, **times} for i, loss in enumerate(losses)]


def test_losses_that_differ_fail():
    rows = make_rows([4.0, 3.0, 2.0])
    assert runs.check_losses(rows, make_rows([4.0, 3.05, 2.0])).status == PASSED
    assert runs.check_losses(rows, make_rows([4.0, 3.0, 2.1])).status == FAILED


def test_steps_faster_than_the_lower_bound_fail():
    rows = make_rows([1.0] * 9)
    speed, skipped = runs.describe_speed(rows, None)
    assert speed.measured == '0.5 s a step, 1,000 tokens/s, MFU 40.0 %'
    assert skipped.status == SKIPPED
    for bound, status in ((0.4, PASSED), (0.6, FAILED)):
        plan = {'lower_bound_seconds': bound, 'forecast_seconds': 0.25}
        check = runs.describe_speed(rows, plan)[1]
        assert check.status == status and check.measured == '2.00 x the forecast of 0.25 s'


def test_attention_that_differs_fails(monkeypatch):
    monkeypatch.setitem(attention._KERNELS, 'cpu', 'blocks')
    checks = attention.check_attention(128)
    assert [check.status for check in checks] == [PASSED] * 8
    make_attend = attention.make_attend

    def make_wrong(segments_RxS, causal, form):
        return make_attend(segments_RxS, causal and form == 'masked', form)

    monkeypatch.setattr(attention, 'make_attend', make_wrong)
    checks = attention.check_attention(128)
    assert [check.status for check in checks] == [FAILED] * 4 + [PASSED] * 4


def test_page_names_what_failed():
    checks = [
        compare('small', 0.5, 1.0, ' s'),
        compare('large', 2.0, 1.0),
        Check('<b>', SKIPPED, '', 'x'),
    ]
    page = render_acceptance({'device': 'TPU v9'}, checks)
    assert '1 of 3 checks failed' in page and '&lt;b&gt;' in page
    assert 'at most 1 s' in page and '<h1>Acceptance of TPU v9</h1>' in page
    assert 'No check failed.' in render_acceptance({'device': 'TPU v9'}, checks[:1])


def test_program_on_a_cpu(tmp_path, monkeypatch, persistent_compilation_cache):
    from cpt_jax.cli.tpu import accept

    config = write_config(tmp_path, layers=1)
    machine = {'device': 'cpu', 'platform': 'cpu'}
    started = []

    def start(name, flags, environment):
        started.append((name, environment))
        if name == 'tpu/accept.py':
            attention_file = tmp_path / 'out' / 'attention.json'
            attention_file.write_text(json.dumps({'machine': machine, 'checks': []}))
            name, flags = 'plan.py', ['--help']
        return start_program(Path(name).stem, *flags, cwd=tmp_path)

    monkeypatch.setattr(runs, '_start', start)
    small = [f'--config={config}', '--config.evaluation.every_steps=0']
    monkeypatch.setattr(accept, '_TRAIN_FLAGS', small)
    given = {'_OUTPUT': str(tmp_path / 'out'), '_STEPS': 9, '_TOPOLOGY': '', '_PART': 'all'}
    for name, value in given.items():
        monkeypatch.setattr(accept, name, types.SimpleNamespace(value=value))
    assert accept.main() == 0
    assert [name for name, _ in started] == ['tpu/accept.py'] + ['train.py'] * 4
    content = json.loads((tmp_path / 'out' / 'acceptance.json').read_text())
    assert [check['status'] for check in content['checks']] == [PASSED] * 4 + [SKIPPED]
    assert 'No check failed.' in (tmp_path / 'out' / 'index.html').read_text()


@pytest.mark.parametrize('status', [1, 70])
def test_failed_program_is_an_error(monkeypatch, status):
    ended = types.SimpleNamespace(returncode=status, wait=lambda: status)
    monkeypatch.setattr(runs, '_start', lambda *_: ended)
    with pytest.raises(runs.UserError, match=f'launch/plan.py ended with status {status}'):
        runs.run_to_end('plan.py', [])
