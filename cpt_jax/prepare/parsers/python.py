"""Finds the functions of a Python file, whose documentation is their docstring."""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_jax.prepare.parsers.nodes import (
    ALL,
    FoundFunction,
    get_line,
    get_name,
    get_source,
    join_dedented,
    tokenize,
)

if TYPE_CHECKING:
    from tree_sitter import Node

_CLASS = 'class_definition'
_FUNCTION = 'function_definition'
# Statements that contain functions of a module or class, which only ALL looks into.
_BRANCHES = (
    'if_statement', 'elif_clause', 'else_clause', 'try_statement', 'except_clause',
    'finally_clause', 'with_statement', 'block',
)  # fmt: skip


def find_python_functions(root: 'Node', source: bytes, scope: str) -> Iterator[FoundFunction]:
    """Yields the functions of a module and the methods of its classes; with ALL, also those in
    nested classes and in branches.
    """
    yield from _find_in(root, source, scope, '')


def _find_in(node: 'Node', source: bytes, scope: str, prefix: str) -> Iterator[FoundFunction]:
    for child in node.named_children:
        definition = child
        if child.type == 'decorated_definition':
            definition = child.child_by_field_name('definition') or child
        if definition.type == _FUNCTION:
            yield _make_function(definition, source, prefix)
        elif definition.type == _CLASS:
            if not prefix or scope == ALL:
                body = definition.child_by_field_name('body') or definition
                yield from _find_in(body, source, scope, f'{prefix}{get_name(definition)}.')
        elif scope == ALL and child.type in _BRANCHES:
            yield from _find_in(child, source, scope, prefix)


def _make_function(node: 'Node', source: bytes, prefix: str) -> FoundFunction:
    body = node.child_by_field_name('body')
    statements = [] if body is None else [n for n in body.named_children if n.type != 'comment']
    doc = _find_docstring(statements)
    if doc is None:
        return FoundFunction(prefix + get_name(node), get_line(node), '', '', ())
    return FoundFunction(
        prefix + get_name(node),
        get_line(node),
        _read_docstring(doc.named_children[0]),
        _remove(node, doc, source),
        tokenize(node, doc),
        is_empty=all(_does_nothing(statement) for statement in statements[1:]),
    )


def _find_docstring(statements: list['Node']) -> 'Node | None':
    """Returns the statement that is the docstring."""
    if statements and statements[0].type == 'expression_statement':
        value = statements[0].named_children
        if len(value) == 1 and value[0].type == 'string':
            return statements[0]
    return None


def _read_docstring(string: 'Node') -> str:
    content = [child for child in string.named_children if child.type == 'string_content']
    return inspect.cleandoc(''.join(map(get_source, content)))


def _does_nothing(statement: 'Node') -> bool:
    if statement.type in ('pass_statement', 'raise_statement'):
        return True
    value = statement.named_children
    return (
        statement.type == 'expression_statement'
        and len(value) == 1
        and value[0].type in ('ellipsis', 'string')
    )


def _remove(node: 'Node', doc: 'Node', source: bytes) -> str:
    """Returns the source of a function without its docstring.

    A line that has only the docstring is removed with it.
    """
    before = source[node.start_byte : doc.start_byte]
    after = source[doc.end_byte : node.end_byte]
    line_end = after.find(b'\n')
    rest_of_line = after[:line_end] if line_end >= 0 else after
    begins_line = not before[before.rfind(b'\n') + 1 :].strip()
    if begins_line and not rest_of_line.strip(b' \t\r;'):
        before = before[: before.rfind(b'\n') + 1]
        after = after[line_end + 1 :] if line_end >= 0 else b''
    else:
        after = after.lstrip(b'; \t')
    line_start = source.rfind(b'\n', 0, node.start_byte) + 1
    lines = (before + after).split(b'\n')
    return join_dedented(lines, source[line_start : node.start_byte]).rstrip()
