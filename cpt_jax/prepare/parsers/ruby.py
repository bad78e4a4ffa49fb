"""Finds the methods of a Ruby file, whose documentation are the comments before them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_jax.prepare.parsers.nodes import (
    ALL,
    FoundFunction,
    clean_hash_comments,
    get_name,
    get_source,
    iterate_with_comments,
    make_function,
)

if TYPE_CHECKING:
    from tree_sitter import Node

_CONTAINERS = ('module', 'class')


def find_ruby_functions(root: 'Node', source: bytes, scope: str) -> Iterator[FoundFunction]:
    """Yields the methods of classes and modules that are directly in a module of the file; with
    ALL, all methods, also those of an object (`def self.name`).

    A file whose outermost level does not parse has none.
    """
    if any(child.type == 'ERROR' for child in root.children):
        return
    if scope == ALL:
        yield from _find_methods(root, source, '', ('method', 'singleton_method'), is_deep=True)
        return
    for module in root.named_children:
        if module.type == 'module':
            for child in _get_members(module):
                if child.type in _CONTAINERS:
                    name = f'{get_name(module)}.{get_name(child)}.'
                    yield from _find_methods(child, source, name, ('method',), is_deep=False)


def _find_methods(
    node: 'Node', source: bytes, prefix: str, kinds: tuple[str, ...], is_deep: bool
) -> Iterator[FoundFunction]:
    for member, comments in iterate_with_comments(_get_members(node)):
        if member.type in kinds:
            doc = clean_hash_comments(map(get_source, comments))
            yield make_function(member, source, prefix + get_name(member), doc)
        elif is_deep and member.type in (*_CONTAINERS, 'singleton_class'):
            inner = f'{prefix}{get_name(member)}.' if get_name(member) else prefix
            yield from _find_methods(member, source, inner, kinds, is_deep)


def _get_members(node: 'Node') -> list['Node']:
    """Returns the statements and comments of a class or module in order; the comments before the
    first statement are outside of its body.
    """
    members = []
    for child in node.named_children:
        members += child.named_children if child.type == 'body_statement' else [child]
    return members
