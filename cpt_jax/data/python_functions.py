"""Extracts the documented functions of a Python file, without their docstrings."""

import ast
import re
import textwrap
import threading
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from cpt_jax.data.filters import (
    explain_rejected_body,
    explain_rejected_name,
    explain_rejected_text,
    extract_first_paragraph,
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef

# A docstring in source that Python 3 cannot parse, such as CodeSearchNet's Python 2 functions.
_TRIPLE_QUOTED = re.compile(r'(:[ \t]*(?:#[^\n]*)?\n\s*)[rRuUbB]{0,2}("""|\'\'\').*?\2', re.DOTALL)

_PARSER = threading.Lock()


class Function(NamedTuple):
    """A function that passes the filters.

    Attributes:
      name: qualified name, such as 'JSONDecoder.decode'.
      line: line number of its `def`, counted from 1.
      doc: first paragraph of its docstring, on one line.
      code: source from `def` on, without decorators, docstring and outer indentation; valid Python.
    """

    name: str
    line: int
    doc: str
    code: str


def decode_source(source: bytes) -> str:
    """Returns the text of a Python file, in its declared encoding and with '\\n' line ends.

    Raises:
      SyntaxError: the declared encoding is unknown.
      UnicodeDecodeError: the content is not valid in the declared encoding.
    """
    encoding, _ = tokenize.detect_encoding(BytesIO(source).readline)
    return source.decode(encoding).replace('\r\n', '\n').replace('\r', '\n')


def parse_module(text: str) -> ast.Module:
    """Returns the syntax tree of a module's source, one thread at a time.

    Python 3.11 counts the depth of the tree in the interpreter, not in the thread (compare
    python/cpython#106905). If the garbage collector lets another thread parse meanwhile,
    `ast.parse` raises SystemError, or RecursionError for source that is not deep. The filter of
    warnings is shared by all threads as well.

    Raises:
      Exception: any exception of `ast.parse`, such as SyntaxError.
    """
    with _PARSER, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # third-party code has invalid escapes in strings
        return ast.parse(text)


def extract_functions(text: str, rejected: Counter[str]) -> list[Function]:
    """Returns the functions and methods of a module that pass CodeSearchNet's filters.

    Nested functions are ignored.

    Args:
      text: source of the module.
      rejected: incremented for each rejected function, by reason; 'seen' counts all functions.

    Raises:
      Exception: any exception of `ast.parse`, such as SyntaxError.
    """
    tree = parse_module(text)
    lines = text.encode().split(b'\n')  # the tree counts columns in UTF-8 bytes
    found = []
    for name, node in _iterate_definitions(tree, ''):
        rejected['seen'] += 1
        doc = ast.get_docstring(node, clean=False)
        if doc is None:
            rejected['no documentation'] += 1
            continue
        reason = explain_rejected_name(node.name) or explain_rejected_body(node.body[1:])
        if not reason:
            function = Function(
                name,
                node.lineno,
                extract_first_paragraph(doc),
                get_source_without_docstring(node, lines),
            )
            reason = explain_rejected_text(function.doc, function.code)
        if reason:
            rejected[reason] += 1
        else:
            found.append(function)
    return found


def _iterate_definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _iterate_definitions(child, f'{prefix}{child.name}.')
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _iterate_definitions(child, prefix)


def get_source_without_docstring(node: Definition, lines: list[bytes]) -> str:
    """Returns the source of a function from `def` on, without docstring and outer indentation.

    Args:
      node: definition whose body has the docstring and at least one more statement.
      lines: lines of the file, in UTF-8.
    """
    doc = node.body[0]
    after = node.body[1]
    head = lines[node.lineno - 1 : doc.lineno]
    head[-1] = head[-1][: doc.col_offset]
    last, last_column = _get_end(node)
    doc_end, _ = _get_end(doc)
    if after.lineno == doc_end:  # 'doc'; statement
        tail = lines[doc_end - 1 : last]
        tail[0] = tail[0][after.col_offset :]
        kept = head[:-1] + [head[-1] + tail[0]] + tail[1:]
    else:
        if not head[-1].strip():
            head = head[:-1]
        kept = head + lines[doc_end:last]
    # Remove the text that follows the function on its last line.
    kept[-1] = kept[-1][: len(kept[-1]) - (len(lines[last - 1]) - last_column)]
    indent = lines[node.lineno - 1][: node.col_offset]
    return b'\n'.join(line.removeprefix(indent) for line in kept).decode().rstrip()


def _get_end(node: ast.stmt) -> tuple[int, int]:
    """Returns the last line and the end column of a parsed statement."""
    if node.end_lineno is None or node.end_col_offset is None:
        raise ValueError('the statement does not come from a parsed text')
    return node.end_lineno, node.end_col_offset


def remove_docstring(code: str) -> str:
    """Returns a Python function's source without its docstring and decorators.

    Other source is only dedented, with '\\n' line ends. If the source does not parse, or has only
    the docstring as its body, the first docstring is replaced by `pass`.
    """
    source = textwrap.dedent(code.replace('\r\n', '\n').replace('\r', '\n'))
    try:
        body = parse_module(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _TRIPLE_QUOTED.sub(r'\1pass', source, count=1)
    function = body[0] if body else None
    if not isinstance(function, Definition) or ast.get_docstring(function, clean=False) is None:
        return source
    if len(function.body) == 1:
        return _TRIPLE_QUOTED.sub(r'\1pass', source, count=1)
    return get_source_without_docstring(function, source.encode().split(b'\n'))
