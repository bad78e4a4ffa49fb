"""Finds the functions of a Go file, whose documentation are the comments before them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_jax.prepare.parsers.nodes import (
    FoundFunction,
    clean_block_comment,
    get_name,
    get_source,
    iterate_with_comments,
    make_function,
)

if TYPE_CHECKING:
    from tree_sitter import Node


def find_go_functions(root: 'Node', source: bytes, scope: str) -> Iterator[FoundFunction]:
    """Yields the functions and methods; Go has no others."""
    del scope
    for node, comments in iterate_with_comments(root.named_children):
        if node.type in ('function_declaration', 'method_declaration'):
            doc = clean_block_comment('\n'.join(map(get_source, comments)))
            yield make_function(node, source, get_name(node), doc)
