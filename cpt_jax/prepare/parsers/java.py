"""Finds the methods of a Java file, whose documentation is the comment before them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_jax.prepare.parsers.nodes import (
    ALL,
    FoundFunction,
    get_comment_before,
    get_name,
    make_function,
)

if TYPE_CHECKING:
    from tree_sitter import Node

_CLASS = 'class_declaration'
_TYPES = (_CLASS, 'interface_declaration', 'enum_declaration', 'record_declaration')
_COMMENTS = ('block_comment', 'line_comment')


def find_java_functions(root: 'Node', source: bytes, scope: str) -> Iterator[FoundFunction]:
    """Yields the methods of the file's classes; with ALL, also those of interfaces, enums, records
    and nested types. Constructors are left out.
    """
    for node in root.named_children:
        if node.type == _CLASS or (scope == ALL and node.type in _TYPES):
            yield from _find_in(node, source, scope, '')


def _find_in(node: 'Node', source: bytes, scope: str, prefix: str) -> Iterator[FoundFunction]:
    name = f'{prefix}{get_name(node)}.'
    body = node.child_by_field_name('body')
    members = [] if body is None else body.named_children
    if scope == ALL and node.type == 'enum_declaration':
        members = [*members, *_get_enum_members(members)]
    for member in members:
        if member.type == 'method_declaration':
            doc = get_comment_before(member, _COMMENTS)
            yield make_function(
                member, source, name + get_name(member), doc, _has_one_line_body(member)
            )
        elif scope == ALL and member.type in _TYPES:
            yield from _find_in(member, source, scope, name)


def _get_enum_members(members: list['Node']) -> list['Node']:
    """Returns what follows the constants of an enum."""
    return [
        child
        for member in members
        if member.type == 'enum_body_declarations'
        for child in member.named_children
    ]


def _has_one_line_body(method: 'Node') -> bool:
    body = method.child_by_field_name('body')
    return body is not None and body.start_point[0] == body.end_point[0]
