"""Finds the methods of a PHP file, whose documentation is the comment before them."""

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

_CLASSES = ('class_declaration', 'trait_declaration')


def find_php_functions(root: 'Node', source: bytes, scope: str) -> Iterator[FoundFunction]:
    """Yields the methods with a body of the file's classes and traits; with ALL, also those of
    enums, those in `namespace {}` and functions outside of classes.
    """
    for node in root.named_children:
        if node.type in _CLASSES or (scope == ALL and node.type == 'enum_declaration'):
            yield from _find_methods(node, source)
        elif scope == ALL and node.type == 'function_definition':
            yield make_function(
                node, source, get_name(node), get_comment_before(node, ('comment',))
            )
        elif scope == ALL and node.type == 'namespace_definition':
            body = node.child_by_field_name('body')
            if body is not None:
                yield from find_php_functions(body, source, scope)


def _find_methods(node: 'Node', source: bytes) -> Iterator[FoundFunction]:
    body = node.child_by_field_name('body')
    for member in body.named_children if body is not None else ():
        if member.type == 'method_declaration' and member.child_by_field_name('body') is not None:
            doc = get_comment_before(member, ('comment',))
            yield make_function(member, source, f'{get_name(node)}.{get_name(member)}', doc)
