"""Finds the functions of a JavaScript file, whose documentation are the comments before them."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_jax.prepare.parsers.nodes import (
    ALL,
    FoundFunction,
    clean_block_comment,
    get_name,
    get_source,
    make_function,
)

if TYPE_CHECKING:
    from tree_sitter import Node, Query

_FUNCTIONS = ('function_declaration', 'function_expression')
_MORE_FUNCTIONS = (
    'arrow_function', 'generator_function', 'generator_function_declaration', 'method_definition'
)  # fmt: skip
# Fields with the name of a function that is a value: `name = function`, `{name: function}`.
_NAME_FIELDS = {
    'variable_declarator': 'name',
    'pair': 'key',
    'assignment_expression': 'left',
    'field_definition': 'property',
}


def find_javascript_functions(root: 'Node', source: bytes, scope: str) -> Iterator[FoundFunction]:
    """Yields the functions at any depth.

    A function that is the value of a variable or of a property has the comments before that. With
    ALL, arrow functions, generators and methods of classes are found too, and the comments before
    an assignment or an export.
    """
    kinds = (*_FUNCTIONS, *_MORE_FUNCTIONS) if scope == ALL else _FUNCTIONS
    for node in _find_nodes(root, kinds):
        name = get_name(node) or _get_name_of_value(node)
        if name == 'constructor':
            continue
        doc = _join_comments(_get_documented_node(node, scope))
        yield make_function(node, source, name, doc)


def _find_nodes(root: 'Node', kinds: tuple[str, ...]) -> list['Node']:
    """Returns all nodes of some kinds, also inside of each other, in the order of the source."""
    from tree_sitter import QueryCursor

    # A query of tree-sitter is three times as fast as Python over all nodes.
    found = QueryCursor(_make_query(kinds)).captures(root).get('node', [])
    return sorted(found, key=lambda node: (node.start_byte, -node.end_byte))


@functools.cache
def _make_query(kinds: tuple[str, ...]) -> 'Query':
    import tree_sitter_javascript
    from tree_sitter import Language, Query

    alternatives = ' '.join(f'({kind})' for kind in kinds)
    return Query(Language(tree_sitter_javascript.language()), f'[{alternatives}] @node')


def _get_name_of_value(node: 'Node') -> str:
    parent = node.parent
    if parent is None or parent.type not in _NAME_FIELDS:
        return ''
    return get_source(parent.child_by_field_name(_NAME_FIELDS[parent.type]))


def _get_documented_node(node: 'Node', scope: str) -> 'Node':
    """Returns the node before which the comments of a function stand."""
    parent = node.parent
    if parent is None:
        return node
    documented = node
    if parent.type == 'variable_declarator' and parent.parent is not None:
        documented = parent.parent
    elif parent.type == 'pair':
        documented = parent
    elif scope == ALL and parent.type == 'field_definition':
        documented = parent
    elif scope == ALL and parent.type == 'assignment_expression' and parent.parent is not None:
        documented = parent.parent
    outer = documented.parent
    if scope == ALL and outer is not None and outer.type == 'export_statement':
        documented = outer
    return documented


def _join_comments(node: 'Node') -> str:
    """Returns the comments before a node; an empty line between comments ends them."""
    comments: list[str] = []
    before = node.prev_sibling
    start = before.end_point[0] + 1 if before else 0
    while before is not None and before.type == 'comment' and before.end_point[0] + 1 >= start:
        comments.insert(0, clean_block_comment(get_source(before)))
        start = before.start_point[0]
        before = before.prev_sibling
    return ' '.join(comments)
