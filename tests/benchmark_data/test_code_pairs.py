"""Pairs of CodeSearchNet files."""

import gc
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from cpt_jax.benchmark_data.code_pairs import load_file_pairs
from cpt_jax.data.python_functions import remove_docstring
from cpt_jax.runtime.errors import UserError

PYTHON = 'def add(a, b):\n    """Adds two numbers.\n\n    And more."""\n    return a + b'
ROW = {'docstring': 'Adds two numbers.\n\nAnd more.', 'code': PYTHON, 'language': 'python'}


def write_lines(path, *rows):
    text = ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows)
    if path.suffix == '.gz':
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return epath.Path(path)


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz'])
def test_raw_pairs_are_first_paragraph_and_code_without_docstring(tmp_path, name):
    pairs = load_file_pairs(write_lines(tmp_path / name, ROW))
    assert pairs.queries == ['Adds two numbers.']
    assert pairs.codes == ['def add(a, b):\n    return a + b']
    assert pairs.settings['pairs'] == 1 and pairs.settings['queries_verbatim_in_their_code'] == 0


def test_fields_of_the_hugging_face_copy_are_read(tmp_path):
    row = {
        'func_documentation_string': 'Adds.',
        'func_code_string': 'int add() {}',
        'language': 'java',
    }
    pairs = load_file_pairs(write_lines(tmp_path / 'a.jsonl', row))
    assert (pairs.queries, pairs.codes) == (['Adds.'], ['int add() {}'])


@pytest.mark.parametrize(
    'name', ['docstring_tokens', 'func_documentation_string_tokens', 'func_documentation_tokens']
)
def test_tokens_are_joined_by_spaces(tmp_path, name):
    row = {name: ['Adds', 'two', '.'], 'code_tokens': ['def', 'add', '(']}
    pairs = load_file_pairs(write_lines(tmp_path / 'a.jsonl', row), text='tokens')
    assert (pairs.queries, pairs.codes) == (['Adds two .'], ['def add ('])


def test_queries_that_occur_in_their_code_are_counted(tmp_path):
    rows = [
        {'docstring': 'Adds  two', 'code': 'f() { // Adds\n two\n}', 'language': 'java'},
        {**ROW, 'code': '# Adds two numbers.'},
        ROW,
    ]
    pairs = load_file_pairs(write_lines(tmp_path / 'a.jsonl', *rows))
    # The last pair does not count, because its docstring is removed.
    assert pairs.settings['queries_verbatim_in_their_code'] == 2


@pytest.mark.parametrize(
    ('code', 'expected'),
    [
        ("@wraps\ndef f(x):\n    'Doc.'\n    return x", 'def f(x):\n    return x'),
        ('    def f(self):\n        """Doc."""\n        return 1', 'def f(self):\n    return 1'),
        (
            'async def f():\n    r"""Doc\n    more"""\n    await g()',
            'async def f():\n    await g()',
        ),
        (
            'def f(x):\n    """Doc: a."""\n    print "python 2", x',
            'def f(x):\n    pass\n    print "python 2", x',
        ),
        (
            "def f(x): # why\n\n    u'''Doc.'''\n    raise E, 'x'",
            "def f(x): # why\n\n    pass\n    raise E, 'x'",
        ),
        ('def f(x):\n    """Doc."""', 'def f(x):\n    pass'),
        (
            'def f(x):\n    y = """text"""\n    return y',
            'def f(x):\n    y = """text"""\n    return y',
        ),
        ('int f() { return 1; }', 'int f() { return 1; }'),
        ('', ''),
    ],
)
def test_docstring_is_removed(code, expected):
    assert remove_docstring(code) == expected


def test_docstrings_are_removed_in_several_threads():
    nested = 'f(' * 40 + 'x' + ')' * 40
    code = f'def f(x):\n    """Doc."""\n    return {nested}'
    expected = remove_docstring(code)

    def switch_threads(phase, info):
        time.sleep(0)

    # JAX's callback of the garbage collector, for one, lets another thread run while `ast.parse`
    # makes the tree.
    gc.callbacks.append(switch_threads)
    thresholds = gc.get_threshold()
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(remove_docstring, [code] * 400)) == {expected}
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(switch_threads)


@pytest.mark.parametrize(
    ('row', 'text', 'message'),
    [
        ('{"docstring": ', 'raw', r'a.jsonl:2: not JSON'),
        (
            {'code': 'x'},
            'raw',
            r"a.jsonl:2: no field 'docstring' or 'func_documentation_string'; the line has 'code'",
        ),
        ({**ROW, 'code': '  '}, 'raw', r"a.jsonl:2: field 'code' holds no text"),
        ({**ROW, 'docstring': None}, 'raw', r"a.jsonl:2: field 'docstring' holds no text"),
        (ROW, 'tokens', r"a.jsonl:2: field 'docstring_tokens' must be a list"),
        (
            {'docstring_tokens': ['a'], 'code_tokens': []},
            'tokens',
            r"a.jsonl:2: field 'code_tokens' must be a list",
        ),
    ],
)
def test_invalid_lines_are_errors_with_file_and_line(tmp_path, row, text, message):
    first = {**ROW, 'docstring_tokens': ['Adds'], 'code_tokens': ['def']}
    with pytest.raises(UserError, match=message):
        load_file_pairs(write_lines(tmp_path / 'a.jsonl', first, row), text)


def test_empty_and_damaged_files_are_errors(tmp_path):
    with pytest.raises(UserError, match=r'a.jsonl: the file is empty'):
        load_file_pairs(write_lines(tmp_path / 'a.jsonl'))
    whole = write_lines(tmp_path / 'b.jsonl.gz', *[ROW] * 100).read_bytes()
    for content in (b'{}', whole[: len(whole) // 2]):
        (tmp_path / 'b.jsonl.gz').write_bytes(content)
        with pytest.raises(UserError, match=r'b.jsonl.gz: a broken gzip file'):
            load_file_pairs(epath.Path(tmp_path / 'b.jsonl.gz'))
