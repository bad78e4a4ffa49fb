"""README.md and docs/: the flags of every command exist, every Python block runs, links resolve."""

import contextlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import absl.app
import pytest

from cpt_jax.runs.config import CHANGEABLE_KEYS
from tests.programs import CONTEXT, ROOT, run_program

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
SCRIPTS = {
    'cpt-train': 'launch/train.py',
    'cpt-evaluate': 'launch/evaluate.py',
    'cpt-embed': 'launch/embed.py',
    'cpt-export': 'launch/export.py',
    'cpt-merge': 'launch/merge.py',
    'cpt-plan': 'launch/plan.py',
    'cpt-mine': 'launch/mine.py',
    'cpt-prepare': 'launch/prepare.py',
    'cpt-demonstrations': 'launch/demonstrations.py',
}


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
      page: the page's path, relative to the repository.
      line: line number of the fence.
      language: the word after the fence.
      text: the lines between the fences.
    """

    page: str
    line: int
    language: str
    text: str


def read_blocks() -> list[Block]:
    """Returns the fenced blocks of all pages, each checked to name its language."""
    blocks = []
    for path in PAGES:
        fence = None
        lines: list[str] = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.startswith('```'):
                lines.append(line)
            elif fence is None:
                fence = number, line[3:]
                lines = []
            else:
                page = str(path.relative_to(ROOT))
                blocks.append(Block(page, *fence, '\n'.join(lines)))
                fence = None
        assert fence is None, f'{path}:{fence}: the block has no end'
    return blocks


def read_commands() -> dict[str, list[tuple[str, list[str]]]]:
    """Returns the commands of all bash blocks by script: (page:line, arguments) of each."""
    commands: dict[str, list[tuple[str, list[str]]]] = {}
    for block in BLOCKS:
        if block.language == 'bash':
            for line in block.text.replace('\\\n', ' ').splitlines():
                words = shlex.split(line, comments=True)
                while words and '=' in words[0]:  # an environment variable
                    words = words[1:]
                script = SCRIPTS.get(words[0], words[0]) if words else ''
                if words and re.fullmatch(r'(.*/)?python3?', words[0]):
                    script, words = words[1], words[1:]
                if script.startswith(('launch/', 'benchmarks/')):
                    where = f'{block.page}:{block.line}'
                    commands.setdefault(script, []).append((where, words[1:]))
    return commands


BLOCKS = read_blocks()
COMMANDS = read_commands()


def parse_commands(script: str, commands: Sequence[tuple[str, list[str]]], errors: Path) -> None:
    """Parses the flags of each command as the script does; writes what they print to `errors`."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    file = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)

    def parse(main: object, flags_parser: Callable[[list[str]], list[str]]) -> None:
        for where, arguments in commands:
            child = os.fork()  # flags are global, and --config defines more of them
            if not child:
                os._exit(parse_one(arguments, flags_parser))
            _, status = os.waitpid(child, 0)
            if status:
                print(f'  by {where}: {script} {shlex.join(arguments)}', file=sys.stderr)

    def parse_one(arguments: list[str], flags_parser: Callable[[list[str]], list[str]]) -> int:
        sys.argv = [script, *arguments]
        try:
            rest = flags_parser(sys.argv)
        except SystemExit as end:
            return int(end.code or 0)
        if len(rest) > 1 and '--' not in arguments:  # the flags of launch/tpu/start.py's run
            print(f'{rest[1]}: not a flag', file=sys.stderr)
            return 1
        return 0

    absl.app.run = parse
    sys.argv = [script]
    sys.path.insert(0, str((ROOT / script).parent))  # as Python does for a script
    runpy.run_path(str(ROOT / script), run_name='__main__')


@pytest.mark.parametrize('script', COMMANDS)
def test_flags_of_every_command_exist(tmp_path, script):
    commands = list(COMMANDS[script])
    errors = tmp_path / 'errors'
    process = CONTEXT.Process(target=parse_commands, args=(script, commands, errors))
    process.start()
    process.join(100)
    assert process.exitcode == 0 and errors.read_text() == ''


def test_targets_of_make_exist():
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    named = {
        target
        for block in BLOCKS
        if block.language == 'bash'
        for target in re.findall(r'^make ([\w-]+)', block.text, re.MULTILINE)
    }
    assert named and named <= targets


@pytest.fixture(scope='module')
def examples(tmp_path_factory) -> Path:
    """Returns a folder with the files that the Python blocks name: runs/mine, its vectors and its
    export, pairs, and a benchmark.
    """
    folder = tmp_path_factory.mktemp('documents')
    old_runs = ROOT / 'tests' / 'fixtures' / 'old_runs'
    shutil.copytree(old_runs / 'scratch', folder / 'runs' / 'mine')
    shutil.copytree(old_runs / 'data' / 'senteval', folder / 'data' / 'senteval')
    (folder / 'my' / 'pairs').mkdir(parents=True)
    shutil.copy(old_runs / 'data' / 'pairs.jsonl', folder / 'my' / 'pairs' / 'train.jsonl')
    texts = [{'id': str(i), 'text': f'def read_{i}(path): ...'} for i in range(8)]
    lines = ''.join(json.dumps(text) + '\n' for text in texts)
    (folder / 'my' / 'corpus.jsonl').write_text(lines)
    for flags in (
        ('embed', '--input', 'my/corpus.jsonl', '--output', 'vectors/mine'),
        ('export', '--output', 'exports/mine'),
    ):
        status, _, errors = run_program(*flags, '--model', 'runs/mine', cwd=folder)
        assert status == 0, errors
    return folder


def runs_here(block: Block) -> bool:
    """Whether a Python block needs neither a package that the tests lack nor a network."""
    if re.search(r'snapshot_download|mteb|facebook/', block.text):
        return False
    module = re.search(r'^(?:from|import) (\w+)', block.text, re.MULTILINE)
    return module is None or importlib.util.find_spec(module[1]) is not None


@pytest.mark.usefixtures('persistent_compilation_cache')  # two pages train the same config
@pytest.mark.parametrize(
    'block',
    [block for block in BLOCKS if block.language == 'python'],
    ids=lambda block: f'{block.page}:{block.line}',
)
def test_python_blocks_run(examples, block):
    code = compile(block.text, f'{block.page}:{block.line}', 'exec')
    if runs_here(block):
        with contextlib.chdir(examples):
            exec(code, {'__name__': 'block'})


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    plain = re.sub(r'[`*]|\[([^]]*)\]\([^)]*\)', r'\1', heading.strip().lower())
    return re.sub(r'[^\w\- ]', '', plain).replace(' ', '-')


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path):
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://')):
            continue
        name, _, wanted = target.partition('#')
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if wanted:
            headings = re.findall(r'^#+ (.*)$', linked.read_text(), re.MULTILINE)
            assert wanted in map(anchor, headings), target


def test_the_table_of_changeable_keys_is_complete():
    text = (ROOT / 'docs' / 'runs.md').read_text()
    table = text.split('### Keys that may change\n')[1].split('\n## ')[0]
    listed = set()
    for section, keys in re.findall(r'^\| `(\w+)` \| (.*) \|$', table, re.MULTILINE):
        names = [''] if keys == 'all' else re.findall(r'`(\w+)`', keys)
        listed |= {f'{section}.{name}' for name in names}
    assert listed == set(CHANGEABLE_KEYS)


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / 'README.md').read_text()
    for path in (ROOT / 'docs').glob('*.md'):
        assert f'(docs/{path.name}' in readme, path
