import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from cpt_jax.data.files import find_input_files
from cpt_jax.prepare.code_duplicates import find_duplicate_functions
from cpt_jax.prepare.code_pairs import (
    check_functions,
    extract_summary,
    find_documented_functions,
    pair_functions,
    tokenize_doc,
)
from cpt_jax.prepare.document import Document, Dropped, TextPair, Unreadable
from cpt_jax.prepare.parsers import languages
from cpt_jax.prepare.source_trees import HIDDEN, SUFFIXES, check_source_reader, read_sources
from cpt_jax.runtime.errors import UserError

TREES = Path(__file__).parents[1] / 'fixtures' / 'source_trees'
GOLDEN = TREES / 'pairs.json'


def read_tree(path, **more):
    files = find_input_files(str(path), SUFFIXES, hidden=HIDDEN)
    return [document for file in files for document in read_sources(file.path, file.name, **more)]


def describe_pairs(scope):
    """Returns the pairs of the trees as {path: [[function, x, lines of y], ...]}."""
    return {
        document.identity: [
            [pair.fields['function'], pair.x, pair.y.split('\n')]
            for pair in pair_functions(document, scope)
            if isinstance(pair, TextPair)
        ]
        for document in read_tree(TREES)
    }


def test_golden_pairs():
    """Every pair was compared with its file by hand."""
    golden = json.loads(GOLDEN.read_text())
    assert describe_pairs('codesearchnet') == golden['codesearchnet']
    every = describe_pairs('all')
    for path, pairs in golden['codesearchnet'].items():
        assert [pair for pair in every[path] if pair in pairs] == pairs
        assert [pair for pair in every[path] if pair not in pairs] == golden['more'][path]


def test_fields_of_pairs():
    documents = read_tree(TREES)
    found = {document.fields['language']: document.fields for document in documents}
    assert found['python'] == {
        'path': 'py/stack.py',
        'language': 'python',
        'license': 'MIT',
        'package': 'py',
        'group': 'py',
    }
    licenses = {language: fields['license'] for language, fields in found.items()}
    assert licenses == {
        'python': 'MIT', 'javascript': 'Apache-2.0', 'php': 'MIT OR GPL-3.0-only', 'java': '',
        'go': '', 'ruby': '',
    }  # fmt: skip
    document = next(each for each in documents if each.fields['language'] == 'python')
    (first, *_) = pair_functions(document)
    assert first.fields == found['python'] | {'function': 'join_all:4'}


def count_rejected(language, text, path='a', scope='codesearchnet'):
    rejected = Counter()
    kept = find_documented_functions(text, language, path, scope, rejected)
    assert rejected.pop('seen', 0) == len(kept) + rejected.total()
    return rejected


def test_every_rejected_function_has_its_reason():
    text = (TREES / 'py' / 'stack.py').read_text()
    assert count_rejected('python', text) == {
        'no documentation': 1, 'no implementation': 1, 'method of every class': 1, 'test name': 1,
        'short implementation': 1,
    }  # fmt: skip
    text = (TREES / 'java' / 'Stack.java').read_text()
    assert count_rejected('java', text) == {
        'short documentation': 1, 'method of every class': 1, 'no implementation': 1
    }  # fmt: skip
    few = 'def add(a, b):\n    """Adds two numbers up."""\n    c = a + b\n    return c\n'
    assert count_rejected('python', few) == {'few identifiers': 1}
    short = few.replace('Adds two numbers up.', 'Adds numbers')
    assert count_rejected('python', short) == {'short documentation': 1}


@pytest.mark.parametrize(
    'language, path, is_read',
    [
        ('python', 'tests/a.py', False),
        ('go', 'vendor/a.go', False),
        ('java', 'vendor/a.java', True),
        ('javascript', 'node_modules/a.js', False),
        ('ruby', 'lib/Latest.rb', False),
        ('php', 'src/A.php', True),
    ],
)
def test_paths_are_filtered_by_language(language, path, is_read):
    tree = {'python': 'py', 'javascript': 'js'}.get(language, language)
    (file,) = [each for each in (TREES / tree).iterdir() if each.stem.lower() == 'stack']
    rejected = Counter()
    kept = find_documented_functions(file.read_text(), language, path, 'codesearchnet', rejected)
    assert bool(kept) == is_read
    assert rejected['files with a test path'] == (not is_read)


@pytest.mark.parametrize(
    'doc, summary',
    [
        ('Returns x.\n\n@param x the x', 'Returns x.'),
        ('Returns x\nof all.\n \t\nMore.', 'Returns x of all.'),
        ('Returns x.\n@param x', 'Returns x.'),
        ('Returns {@link X} of it.', 'Returns {'),
        ('Returns {@link X} of it.\n\nMore.', 'Returns {@link X} of it.'),
        ('\n\n  ', ''),
    ],
)
def test_summary_is_the_first_paragraph(doc, summary):
    assert extract_summary(doc) == summary


def test_tokens_of_a_documentation_are_those_of_codesearchnet():
    """The expected tokens are those of DOCSTRING_REGEX_TOKENIZER of its function_parser."""
    assert tokenize_doc("Calls f(), g({}) it's x[0]...\\n -- a_b=c; d::e <p>") == [
        'Calls', 'f', '()', 'g', '(', '{}', ')', 'it', 's', 'x', '[', '0', ']', '...', '\\', 'n',
        '--', 'a_b', '=', 'c', ';', 'd', '::', 'e', '<p', '>',
    ]  # fmt: skip


def test_duplicates_of_functions():
    code = 'def add(first, second, third):\n    """Adds all three up."""\n'
    body = '    total = first + second + third\n    name = str(total)\n    return name, total\n'
    sources = [
        code + body,
        code.replace('Adds', 'Sums') + body.replace('\n', '   \n'),  # the same tokens
        code + body.replace('name', 'text').replace('str', 'repr'),  # 5 of 9 identifiers
        code + body + '    print(total)\n',  # 7 of 8 identifiers
        code.replace('first', 'a') + body.replace('first', 'b').replace('total', 'c'),
    ]
    functions = [
        find_documented_functions(source, 'python', 'a', 'codesearchnet', Counter())[0].tokens
        for source in sources
    ]
    found = find_duplicate_functions(functions, 'python').tolist()
    assert found == [False, True, False, True, False]


def test_files_of_archives_are_those_of_the_tree(tmp_path):
    as_tree = {
        (document.identity, document.text, document.fields['license'])
        for document in read_tree(TREES)
    }
    for name in ('a.zip', 'b.tar.gz', 'c.tgz', 'd.tar'):
        path = tmp_path / name
        files = [file for file in sorted(TREES.rglob('*')) if file.is_file()]
        if name == 'a.zip':
            with zipfile.ZipFile(path, 'w') as archive:
                for file in files:
                    archive.write(file, file.relative_to(TREES))
        else:
            with tarfile.open(path, 'w:gz' if 'gz' in name else 'w') as archive:
                for file in files:
                    archive.add(file, file.relative_to(TREES))
        documents = list(read_sources(path, f'x/{name}'))
        found = {
            (
                document.identity.removeprefix(f'x/{name}/'),
                document.text,
                document.fields['license'],
            )
            for document in documents
        }
        assert found == as_tree
        assert {document.fields['package'] for document in documents} == {
            f'x/{name}/{tree}' for tree in ('go', 'java', 'js', 'php', 'py', 'ruby')
        }
        (tmp_path / 'x').mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / 'x' / name)
        path.write_bytes(path.read_bytes()[:700])
        assert isinstance(list(read_sources(path, name))[-1], Unreadable)


def test_packages_and_licenses_of_a_tree(tmp_path):
    source = 'x = 1\n'
    for name in ('one/a.py', 'one/sub/b.py', 'top.py', '_two/__init__.py', '.git/hook.py'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    (tmp_path / 'one-1.0.dist-info').mkdir()
    (tmp_path / 'one-1.0.dist-info/METADATA').write_text('Name: one\nLicense: BSD\n\nText')
    (tmp_path / 'COPYING').write_text('GNU GENERAL PUBLIC\nLICENSE\nVersion 3, 29 June 2007')
    found = {
        document.identity: (document.fields['package'], document.fields['license'])
        for document in read_tree(tmp_path)
    }
    assert found == {
        'one/a.py': ('one', 'BSD'),
        'one/sub/b.py': ('one', 'BSD'),
        'top.py': (tmp_path.name, 'GPL-3.0'),
        '_two/__init__.py': ('_two', 'GPL-3.0'),
    }
    packages = {document.fields['package'] for document in read_tree(tmp_path, package_folders=2)}
    assert packages == {'one', 'one/sub', '_two', tmp_path.name}


def test_what_is_not_read(tmp_path):
    (tmp_path / 'large.py').write_text('x = 1\n' * 100)
    (tmp_path / 'latin.py').write_bytes(b'x = "\xe9"\n')
    (tmp_path / 'other.go').write_text('package a\n')
    found = read_tree(tmp_path, languages=('python',), max_file_mb=0.0001)
    large, latin = found
    assert (latin.where, latin.kind) == ('latin.py', 'not UTF-8')
    assert large == Dropped('source file above max_file_mb')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            {'languages': ('python', 'cobol')},
            "languages: 'cobol' is unknown: choose from go, ",
        ),
        ({'package_folders': -1}, 'package_folders=-1: must be 0 or more'),
        ({'max_file_mb': 0}, 'max_file_mb=0: must be above 0'),
    ],
)
def test_invalid_arguments_of_the_reader(arguments, message):
    with pytest.raises(UserError, match=message):
        check_source_reader(**arguments)


def test_invalid_arguments_of_the_rule(monkeypatch):
    check_functions('all')
    with pytest.raises(UserError, match="scope is 'some' and must be one of codesearchnet, all"):
        check_functions('some')
    languages.load_parser.cache_clear()
    monkeypatch.setattr(languages, 'import_module', lambda name: __import__('tree_sitter_none'))
    with pytest.raises(UserError, match=r"need tree_sitter_none: pip install 'cpt_jax\[prepare\]'"):
        check_functions()
    languages.load_parser.cache_clear()


def test_broken_source_gives_what_parses():
    text = (TREES / 'py' / 'stack.py').read_text() + '\n\ndef (:\n'
    found = [*pair_functions(Document(text, 'a.py', {'path': 'a.py', 'language': 'python'}))]
    assert isinstance(found[0], TextPair)
    assert Dropped('function: method of every class') in found
    other = Dropped('file in another programming language')
    assert [*pair_functions(Document(text, 'a.txt'))] == [other]
