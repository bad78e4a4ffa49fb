"""The documented functions of one Python file, each without its docstring."""

import ast
import re
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from cpt_jax.data.filters import body_rejection, first_paragraph, name_rejection, text_rejection

Definition = ast.FunctionDef | ast.AsyncFunctionDef

# A docstring in source that Python 3 does not parse, as in the Python 2 functions of CodeSearchNet.
_TRIPLE_QUOTED = re.compile(r'(:[ \t]*(?:#[^\n]*)?\n\s*)[rRuUbB]{0,2}("""|\'\'\').*?\2', re.DOTALL)


class Function(NamedTuple):
    """A function that the filters keep.

    Attributes:
      name: qualified, such as 'JSONDecoder.decode'.
      line: of its `def`, counted from 1.
      doc: the first paragraph of its docstring, on one line.
      code: its source from `def` on, without decorators, docstring and outer indentation; it
        parses.
    """

    name: str
    line: int
    doc: str
    code: str


def decode(source: bytes) -> str:
    """The text of a Python file as the interpreter sees it: its declared encoding, line ends as
    newlines.

    Raises SyntaxError or UnicodeDecodeError.
    """
    encoding, _ = tokenize.detect_encoding(BytesIO(source).readline)
    return source.decode(encoding).replace('\r\n', '\n').replace('\r', '\n')


def functions(text: str, rejected: Counter[str]) -> list[Function]:
    """The functions and methods of a module that pass CodeSearchNet's filters; nested functions are
    not looked at.

    `rejected` counts the others by reason, and all of them under 'seen'. Raises what `ast.parse`
    raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # invalid escapes in other people's strings
        tree = ast.parse(text)
    lines = text.encode().split(b'\n')  # the tree counts columns in UTF-8 bytes
    found = []
    for name, node in _definitions(tree, ''):
        rejected['seen'] += 1
        doc = ast.get_docstring(node, clean=False)
        if doc is None:
            rejected['no documentation'] += 1
            continue
        reason = name_rejection(node.name) or body_rejection(node.body[1:])
        if not reason:
            function = Function(name, node.lineno, first_paragraph(doc), undocumented(node, lines))
            reason = text_rejection(function.doc, function.code)
        if reason:
            rejected[reason] += 1
        else:
            found.append(function)
    return found


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(child, f'{prefix}{child.name}.')
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child, prefix)


def undocumented(node: Definition, lines: list[bytes]) -> str:
    """The source of a function from its `def` on, less its docstring (body[0]) and the indentation
    of its first line.

    `lines` are those of the file, in UTF-8. The body must hold more than the docstring.
    """
    doc, after = node.body[0], node.body[1]
    head = lines[node.lineno - 1 : doc.lineno]
    head[-1] = head[-1][: doc.col_offset]
    last, last_column = _end(node)
    doc_end, _ = _end(doc)
    if after.lineno == doc_end:  # 'doc'; statement
        tail = lines[doc_end - 1 : last]
        tail[0] = tail[0][after.col_offset :]
        whole = head[:-1] + [head[-1] + tail[0]] + tail[1:]
    else:
        whole = (head if head[-1].strip() else head[:-1]) + lines[doc_end:last]
    whole[-1] = whole[-1][: len(whole[-1]) - (len(lines[last - 1]) - last_column)]
    indent = lines[node.lineno - 1][: node.col_offset]
    return b'\n'.join(line.removeprefix(indent) for line in whole).decode().rstrip()


def _end(node: ast.stmt) -> tuple[int, int]:
    """Last line and column of a statement. Those of a parsed text have both."""
    if node.end_lineno is None or node.end_col_offset is None:
        raise ValueError('a statement without a place in a text')
    return node.end_lineno, node.end_col_offset


def without_docstring(code: str) -> str:
    """A Python function's source without its docstring and decorators; other source comes back as
    it is.
    """
    source = textwrap.dedent(code.replace('\r\n', '\n').replace('\r', '\n'))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # invalid escapes in other people's strings
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _TRIPLE_QUOTED.sub(r'\1pass', source, count=1)
    function = body[0] if body else None
    if not isinstance(function, Definition) or ast.get_docstring(function, clean=False) is None:
        return source
    if len(function.body) == 1:
        return _TRIPLE_QUOTED.sub(r'\1pass', source, count=1)
    return undocumented(function, source.encode().split(b'\n'))
