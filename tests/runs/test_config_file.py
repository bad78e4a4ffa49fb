"""Config files, given as FILE.py and FILE.py:ARGUMENT."""

from pathlib import Path

import pytest

import configs
from cpt_jax.runs.config_file import find_config, find_default_workdir, load_config
from cpt_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]

# A user's config file, which takes an argument and starts from a config of this package.
OWN = """
from configs import quickstart

ARGUMENTS = ('small', 'large')


def get_config(size='small'):
    c = quickstart.get_config()
    c.model.width = {'small': 64, 'large': 512}[size]
    return c
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Makes a new folder with a user's config file the current directory, and returns it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.py').write_text(OWN)
    return tmp_path


def test_config_consists_of_plain_values(folder):
    config = load_config(ROOT / 'configs' / 'quickstart.py')
    assert type(config) is dict and type(config['train']) is dict and config['train']['steps'] > 0
    assert load_config('configs/quickstart.py') == config


def test_file_in_the_current_directory_comes_before_the_installed_one(folder):
    (folder / 'configs').mkdir()
    (folder / 'configs/quickstart.py').write_text('def get_config():\n  return {"seed": 7}\n')
    assert load_config('configs/quickstart.py') == {'seed': 7}


def test_only_configs_are_looked_up_in_the_installed_package(folder):
    with pytest.raises(UserError, match='^cpt_jax/cli/train.py: no such file$'):
        find_config('cpt_jax/cli/train.py')


def test_argument_is_passed_to_get_config(folder):
    width = {
        reference: load_config(reference)['model']['width']
        for reference in ('own.py', 'own.py:small', 'own.py:large', folder / 'own.py')
    }
    assert list(width.values()) == [64, 64, 512, 64]
    assert load_config('configs/prompteol.py:opt-13b')['model']['width'] == 5120
    assert load_config(f'{ROOT}/configs/prompteol.py:llama-7b')['model']['positions'] == 'rotary'


def test_folder_name_may_contain_a_colon(folder):
    (folder / 'a:b').mkdir()
    (folder / 'a:b/own.py').write_text(OWN)
    assert load_config('a:b/own.py:large')['model']['width'] == 512


MISTAKES = {
    'own.py:huge': "^own.py:huge: no argument 'huge': choose one of small, large$",
    'own.py:': "^own.py:: no argument '': choose one of small, large$",
    'configs/prompteol.py:opt-13B': "no argument 'opt-13B': choose one of opt-125m, .*llama-65b$",
    'configs/cpt_s.py:x': '^configs/cpt_s.py:x: cpt_s.py takes no argument; leave out :x$',
    'needs.py': '^needs.py: needs an argument, needs.py:ARGUMENT$',
    'lists.py': '^lists.py: needs an argument, lists.py:ARGUMENT: choose one of 1, 2$',
    'free.py:x': "^free.py:x: line 2: ValueError: invalid literal .* 'x'$",
    'nowhere.py:x': '^nowhere.py:x: no such file$',
    'nothing.py': r'^nothing.py: nothing.py defines no function get_config\(\)$',
    'number.py': r'^number.py: get_config\(\) returned 3; it must return .*ConfigDict$',
    'imports.py': "^imports.py: line 1: ModuleNotFoundError: .*'no_such_module'$",
    'user.py': '^user.py: say no$',
}
FILES = {
    'needs.py': 'def get_config(size):\n  return {}',
    'lists.py': 'ARGUMENTS = ("1", "2")\ndef get_config(size):\n  return {}',
    'free.py': 'def get_config(steps):\n  return {"steps": int(steps)}',
    'nothing.py': 'x = 1',
    'number.py': 'def get_config():\n  return 3',
    'imports.py': 'import no_such_module',
    'user.py': 'from cpt_jax.runtime.errors import UserError\nraise UserError("say no")',
}


@pytest.mark.parametrize('reference', MISTAKES)
def test_mistake_is_a_one_line_error(folder, reference):
    for name, text in FILES.items():
        (folder / name).write_text(text + '\n')
    with pytest.raises(UserError, match=MISTAKES[reference]) as error:
        load_config(reference)
    assert '\n' not in str(error.value)


def test_any_argument_is_valid_without_arguments_list(folder):
    (folder / 'free.py').write_text(FILES['free.py'])
    assert load_config('free.py:12') == {'steps': 12}


@pytest.mark.parametrize(
    ('reference', 'name'),
    [
        ('configs/quickstart.py', 'quickstart'),
        ('configs/prompteol.py:opt-1.3b', 'prompteol-opt-1.3b'),
        ('own.py:variant=B/16, res=224', 'own-variant=B-16,-res=224'),
        ('own.py:../x y', 'own-..-x-y'),
    ],
)
def test_name_is_valid_for_a_directory(folder, reference, name):
    assert find_config(reference).name == name == find_default_workdir(name).name


@pytest.mark.parametrize('former', configs.RENAMED)
def test_former_file_name_is_an_error_with_the_new_name(folder, former):
    now = configs.RENAMED[former]
    with pytest.raises(UserError) as error:
        find_config(f'configs/{former}.py')
    assert str(error.value) == f'configs/{former}.py: this config is now configs/{now}'
    (folder / 'runs' / former).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        find_config(f'configs/{former}.py')
    assert str(error.value).endswith(
        f'; the run in runs/{former} continues with --workdir runs/{former}'
    )


def test_run_with_a_former_name_is_continued(folder, capsys):
    name = find_config('configs/prompteol.py:opt-6.7b').name
    assert find_default_workdir(name) == Path('runs/prompteol-opt-6.7b')
    former = folder / 'runs/prompteol_opt_6p7b'
    former.mkdir(parents=True)
    assert capsys.readouterr().out == ''
    assert find_default_workdir(name) == Path('runs/prompteol_opt_6p7b')
    assert capsys.readouterr().out.startswith('continuing in runs/prompteol_opt_6p7b, ')
    assert find_default_workdir('prompteol-opt-13b') == Path('runs/prompteol-opt-13b')
    (folder / 'runs/prompteol-opt-6.7b').mkdir()
    assert find_default_workdir(name) == Path('runs/prompteol-opt-6.7b')
    assert capsys.readouterr().out == ''
