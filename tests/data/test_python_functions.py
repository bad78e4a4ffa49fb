import ast
import sysconfig
import warnings
from collections import Counter
from pathlib import Path

import pytest

from cpt_jax.data.python_functions import (
    decode_source,
    extract_functions,
    get_source_without_docstring,
)


def extract_one(source):
    found = extract_functions(source, Counter())
    assert len(found) == 1
    return found[0]


def test_decorated_async_method_is_extracted():
    function = extract_one(
        'import a\n\n\nclass Outer:\n    class Inner(a.B):\n        @property\n        '
        "@a.doc('Returns the size of it.')\n"
        '        async def size(self,\n                       x=1):  # a comment\n            '
        'r"""Returns the size\n'
        '            of the thing.\n\n            And more.\n            """  # noqa\n            '
        '# why\n'
        '            if x:\n                return """two\n  lines"""\n            return 1  # '
        'end\n\n    y = 1\n'
    )
    assert function.name == 'Outer.Inner.size'
    assert function.line == 8
    assert function.doc == 'Returns the size of the thing.'
    assert function.code == (
        'async def size(self,\n               x=1):  # a comment\n    # why\n    if x:\n        '
        'return """two\n  lines"""\n    return 1'
    )


@pytest.mark.parametrize(
    'source, code',
    [
        ('def f(): "doc"; return 1', 'def f(): return 1'),
        ('def f(): "doc" ; a = 1; return a', 'def f(): a = 1; return a'),
        ('def f(): """doc\nmore"""; return 1', 'def f(): return 1'),
        ('def f():\n    "doc"; return 1', 'def f():\n    return 1'),
        ('def f():\n    "doc";\n    return 1', 'def f():\n    return 1'),
        ('def f():\n  ("doc"\n   "more")\n  return 1', 'def f():\n  return 1'),
        ('def f():\n    "é – ü"; return "é"', 'def f():\n    return "é"'),
        (
            'def f():\n    # before\n    "doc"\n\n    return 1',
            'def f():\n    # before\n\n    return 1',
        ),
        ('def f():\\\n  "doc"; return 1', 'def f():\\\n  return 1'),
        ('class A:\n\tdef f(self):\n\t\t"doc"\n\t\treturn 1', 'def f(self):\n\treturn 1'),
        (
            'if x:\n    def f():\n        "doc"\n# loose\n        return """\n    a"""',
            'def f():\n# loose\n    return """\na"""',
        ),
    ],
)
def test_docstring_is_removed(source, code):
    node = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    assert get_source_without_docstring(node, source.encode().split(b'\n')) == code
    ast.parse(code)


BODY = '\n    """Does it for all."""\n    a = 1\n    return a\n'


@pytest.mark.parametrize(
    'source, names',
    [
        (f'def f():{BODY}def g():{BODY}', ['f', 'g']),
        (
            'try:\n'
            + f'def f():{BODY}'.replace('\n', '\n ').replace('def', ' def')
            + '\nexcept E:\n  pass\n',
            ['f'],
        ),
        (
            f'def f():{BODY}    def g():\n        "Ignored, because nested."\n        a = 1\n     '
            f'   return a\n',
            ['f'],
        ),
        (f'class A:\n  class B:\n    x = 1\ndef f():{BODY}', ['f']),
        ('def f():\n    a = 1\n    return a\n', []),
        (f'def test_f():{BODY}', []),
        (f'def __call__():{BODY}', []),
        ('def f():\n    """Does it for all."""\n', []),
        ('def f():\n    """Does it for all."""\n    pass\n', []),
        ('def f():\n    """Does it for all."""\n    return 1\n', []),
        ('def f():\n    """Does it.\n\n    For all of them."""\n    a = 1\n    return a\n', []),
        ('', []),
    ],
)
def test_only_documented_and_implemented_functions_are_kept(source, names):
    assert [function.name for function in extract_functions(source, Counter())] == names


def test_rejected_functions_are_counted_by_reason():
    rejected = Counter()
    extract_functions(
        f'def f():{BODY}def test_g():{BODY}def h():\n    return 1\ndef __i__():{BODY}', rejected
    )
    assert rejected == {'seen': 4, 'test name': 1, 'no documentation': 1, 'dunder name': 1}


@pytest.mark.parametrize(
    'source, text',
    [
        (b'x = 1\r\ny = 2\rz = 3\n', 'x = 1\ny = 2\nz = 3\n'),
        (b'\xef\xbb\xbfx = 1', 'x = 1'),
        (b'# coding: latin-1\nx = "\xe9"', '# coding: latin-1\nx = "é"'),
        ('x = "é"'.encode(), 'x = "é"'),
    ],
)
def test_source_is_decoded_as_python_does(source, text):
    assert decode_source(source) == text


@pytest.mark.parametrize('source', [b'x = "\xe9"', b'# coding: nonsense\n'])
def test_undecodable_source_raises_syntax_error(source):
    with pytest.raises(SyntaxError):
        decode_source(source)


def test_invalid_escapes_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        extract_functions(f'X = "\\d"\ndef f():{BODY}', Counter())


def dump_without_docstring(tree):
    """Returns a dump of a function's tree without decorators; indentation in strings is removed.

    Args:
      tree: definition whose docstring was already removed.
    """
    tree.decorator_list = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = '\n'.join(map(str.lstrip, node.value.split('\n')))
    return ast.dump(tree)


def list_functions(tree, prefix=''):
    """Yields ((qualified name, line), node) of functions that are not nested."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (prefix + node.name, node.lineno), node
        else:
            yield from list_functions(
                node, f'{prefix}{node.name}.' if isinstance(node, ast.ClassDef) else prefix
            )


def test_extracted_code_has_the_tree_of_the_original():
    """In the standard library, extracted code parses to the original tree without decorators and
    docstring.
    """
    root = Path(sysconfig.get_path('stdlib'))
    compared = 0
    for path in [*sorted(root.glob('*.py'))[::4], *sorted((root / 'email').glob('*.py'))]:
        text = decode_source(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            originals = dict(list_functions(ast.parse(text)))
            for function in extract_functions(text, Counter()):
                original = originals[function.name, function.line]
                original.body = original.body[1:]
                (again,) = ast.parse(function.code).body
                assert dump_without_docstring(again) == dump_without_docstring(original), (
                    f'{path}:{function.line}'
                )
                compared += 1
    assert compared > 300
