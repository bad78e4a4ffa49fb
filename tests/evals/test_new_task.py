"""A new kind of task needs one file and one line in the registry. It is found, selected, scored,
and scored again only when something changes.
"""

import json
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from absl import flags
from etils import epath

from cpt_jax.cli.option_flags import define_option_flags
from cpt_jax.evals import registry
from cpt_jax.evals.options import Options, SplitOptions, declare_option
from cpt_jax.evals.registry import find_option_fields, find_tasks, select_tasks
from cpt_jax.evals.run import run_tasks
from cpt_jax.evals.task import Context, Result, Task, TaskKind

# The complete file, as it would be in cpt_jax/evals/tasks/.
NEW_FILE = '''
"""Pair classification: whether two texts mean the same."""

import json
from dataclasses import dataclass

import numpy as np
from etils import epath

from cpt_jax.embed.function import Embed, embed_texts
from cpt_jax.evals.fingerprint import fingerprint_files, fingerprint_task
from cpt_jax.evals.options import SideOptions, declare_option
from cpt_jax.evals.task import Context, TaskKind, Result, Task


@dataclass(frozen=True)
class PairOptions(SideOptions):
    """Options of pairclass/*."""

    threshold: float = declare_option(0.5, 'Smallest cosine of equal meaning.', lower_bound=0)


@dataclass(frozen=True)
class PairClassification(Task):
    """One file of [first, second, same] rows."""

    name: str
    path: epath.Path
    options: PairOptions = PairOptions()

    def fingerprint(self) -> str:
        return fingerprint_task(self.name, self.options, fingerprint_files([self.path]))

    def run(self, embed: Embed) -> Result:
        first, second, same = zip(*json.loads(self.path.read_text()), strict=True)
        side = self.options.symmetric_side
        u_NxD, v_NxD = embed_texts(embed, first, side), embed_texts(embed, second, side)
        right_N = ((u_NxD * v_NxD).sum(axis=1) >= self.options.threshold) == np.array(same)
        score = float(right_N.mean())
        return Result('accuracy', {'accuracy': score}, len(same), {'side': side}, counted='pairs')


def find_pairs(data_dir: epath.Path | None, options: PairOptions, context: Context):
    paths = sorted((data_dir / 'pairclass').glob('*.json')) if data_dir else []
    names = [f'{KIND.name}/{path.stem}' for path in paths]
    return {name: PairClassification(name, path, options) for name, path in zip(names, paths)}


KIND = TaskKind(
    name='pairclass',
    find=find_pairs,
    options=PairOptions,
    layout='pairclass/<name>.json',
    folder='pairclass/',
)
'''
PAIRS = [['a b', 'a b', True], ['a', 'b', False], ['a', 'a b', False], ['b', 'b b', True]]


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A data directory for the new kind, which is registered with one line."""
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'pairclass_kind.py').write_text(NEW_FILE)
    monkeypatch.syspath_prepend(tmp_path / 'new')
    import pairclass_kind

    monkeypatch.setattr(registry, 'KINDS', (*registry.KINDS, pairclass_kind.KIND))
    yield write_pairs(tmp_path, PAIRS)
    del sys.modules['pairclass_kind']


def write_pairs(folder, pairs):
    (folder / 'pairclass').mkdir(exist_ok=True)
    for name in ('one', 'other'):
        (folder / 'pairclass' / f'{name}.json').write_text(json.dumps(pairs))
    return folder


def count_letters(texts, side):
    """Returns float32[n, 2]: the normalized counts of the letters a and b."""
    counts_NxD = np.array([[text.count('a'), text.count('b')] for text in texts], np.float32)
    return counts_NxD / np.linalg.norm(counts_NxD, axis=1, keepdims=True)


def score(data_dir, pattern='pairclass/*', **options):
    """Returns the rows of the tasks and the side of each call of the embedding function."""
    asked = []

    def embed(texts, side):
        asked.append(side)
        return count_letters(texts, side)

    tasks = select_tasks(find_tasks(str(data_dir), **options), [pattern], str(data_dir))
    results = run_tasks(embed, 'm', {}, tasks, epath.Path(data_dir) / 'out')
    return results['tasks'], asked


def test_new_kind_is_found_selected_and_scored(data_dir):
    rows, asked = score(data_dir)
    assert list(rows) == ['pairclass/one', 'pairclass/other'] and asked == ['x'] * 4
    assert rows['pairclass/one']['main_score'] == 0.75  # cos(a, a b) is 0.71, above 0.5
    page = (data_dir / 'out' / 'report' / 'index.html').read_text()
    assert 'pairclass/<wbr>one' in page or 'pairclass/one' in page


def test_task_is_scored_again_only_when_data_or_options_change(data_dir, capsys):
    assert score(data_dir, 'pairclass/one')[1] and not score(data_dir, 'pairclass/one')[1]
    assert 'pairclass/one: already scored' in capsys.readouterr().out
    rows, asked = score(data_dir, 'pairclass/one', threshold=0.9)
    assert asked == ['x', 'x'] and rows['pairclass/one']['main_score'] == 1
    # An option that the kind shares with others, and an option that it does not have.
    assert score(data_dir, 'pairclass/one', threshold=0.9, symmetric_side='y')[1] == ['y', 'y']
    assert not score(data_dir, 'pairclass/one', threshold=0.9, symmetric_side='y', k=50)[1]
    write_pairs(data_dir, PAIRS[:2])
    rows, asked = score(data_dir, 'pairclass/one', threshold=0.9, symmetric_side='y')
    assert asked and rows['pairclass/one']['n'] == 2


def test_messages_contain_the_layout_of_its_data(data_dir):
    with pytest.raises(Exception, match=r'pairclass/none: no such task; available: pairclass/one'):
        select_tasks(find_tasks(str(data_dir)), ['pairclass/none'], str(data_dir))
    with pytest.raises(Exception, match=r'expected in --data_dir .*: pairclass/<name>.json'):
        select_tasks(find_tasks(str(data_dir)), ['pairclass/none'], str(data_dir))


def test_option_becomes_a_flag(data_dir):
    values = flags.FlagValues()
    read = define_option_flags(find_option_fields(), values)
    values(['evaluate'])
    assert read()['threshold'] == 0.5
    values = flags.FlagValues()
    read = define_option_flags(find_option_fields(), values)
    values(['evaluate', '--threshold=0.9'])
    assert read()['threshold'] == 0.9 and read()['symmetric_side'] == 'x'
    assert score(data_dir, 'pairclass/one', **read())[0]['pairclass/one']['main_score'] == 1
    assert 'Smallest cosine of equal meaning.' in values.get_help()
    with pytest.raises(flags.IllegalFlagValueError, match='threshold'):
        values(['evaluate', '--threshold=-1'])


def register(monkeypatch, find, options=Options) -> None:
    kind = TaskKind('made', find, layout='made/', folder='made/', options=options)
    monkeypatch.setattr(registry, 'KINDS', (*registry.KINDS, kind))


@dataclass(frozen=True)
class WithoutFingerprint:
    name: str = 'made/a'

    def run(self, embed) -> Result:
        return Result('accuracy', {'accuracy': 1.0}, 1, {})


def test_task_without_a_fingerprint_is_refused(tmp_path, monkeypatch):
    register(monkeypatch, lambda data_dir, options, context: {'made/a': WithoutFingerprint()})
    with pytest.raises(
        TypeError, match=r'made/a: WithoutFingerprint must be a subclass .*fingerprint'
    ):
        find_tasks(None)
    with pytest.raises(
        TypeError, match=r'made/a: WithoutFingerprint must be a subclass .*fingerprint'
    ):
        run_tasks(count_letters, 'm', {}, [WithoutFingerprint()], epath.Path(tmp_path) / 'out')
    assert not (tmp_path / 'out').exists()


def test_subclass_without_a_fingerprint_cannot_be_instantiated(monkeypatch):
    class Forgetful(Task):
        name = 'made/a'

        def run(self, embed) -> Result:
            return Result('accuracy', {'accuracy': 1.0}, 1, {})

    register(monkeypatch, lambda data_dir, options, context: {'made/a': Forgetful()})
    with pytest.raises(TypeError, match='abstract class Forgetful .*fingerprint'):
        find_tasks(None)


def test_task_name_must_start_with_its_kind(monkeypatch):
    def find(data_dir, options, context):
        task = registry.KINDS[0].find(None, registry.KINDS[0].options(), Context())
        return {'made/a': task['codesearch/python_source']}

    register(monkeypatch, find)
    with pytest.raises(TypeError, match='made/a: the task has the name codesearch/python_source'):
        find_tasks(None)


def test_option_declared_twice_is_refused(monkeypatch):
    @dataclass(frozen=True)
    class Again(Options):
        split: str = declare_option('', 'Another split.')

    register(monkeypatch, lambda *of: {}, Again)
    with pytest.raises(TypeError, match=r'the option split of made/\* is declared by another kind'):
        find_option_fields()
    monkeypatch.setattr(
        registry, 'KINDS', (*registry.KINDS[:-1], replace(registry.KINDS[-1], options=SplitOptions))
    )
    assert 'split' in find_option_fields()


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match='no kind of task has the option treshold'):
        find_tasks(None, treshold=1)
