"""Functions that the parsers of all languages share, over the nodes of a tree-sitter tree."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Node

# Which functions are found: those that CodeSearchNet's parsers visit, or all.
CODESEARCHNET = 'codesearchnet'
ALL = 'all'
SCOPES = (CODESEARCHNET, ALL)


class FoundFunction(NamedTuple):
    """A function of a file, with or without documentation.

    Attributes:
      name: name, qualified by its classes, such as 'Stack.push'.
      line: line of its beginning, counted from 1.
      doc: its documentation without comment delimiters; '' if there is none.
      code: source without the documentation; '' without documentation.
      tokens: tokens of the code, in which a string is one token; () without documentation.
      is_empty: whether the body does nothing.
    """

    name: str
    line: int
    doc: str
    code: str
    tokens: tuple[str, ...]
    is_empty: bool = False

    @property
    def own_name(self) -> str:
        """Name without those of its classes."""
        return self.name.rpartition('.')[2]


def get_source(node: 'Node | None') -> str:
    """Returns the source of a node; '' for None."""
    if node is None or node.text is None:
        return ''
    return node.text.decode('utf-8', 'replace')


def get_name(node: 'Node') -> str:
    """Returns the name of a function or class; '' if it has none."""
    return get_source(node.child_by_field_name('name'))


def get_line(node: 'Node') -> int:
    """Returns the line of a node's beginning, counted from 1."""
    return node.start_point[0] + 1


def tokenize(node: 'Node', without: 'Node | None' = None) -> tuple[str, ...]:
    """Returns the leaves of a node, except those of `without`; a string is one token."""
    tokens: list[str] = []
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node == without:
            continue
        if node.type == 'string' or not node.children:
            tokens.append(get_source(node))
        else:
            waiting += reversed(node.children)
    return tuple(filter(None, tokens))


def get_code(node: 'Node', source: bytes) -> str:
    """Returns the source of a node, without the indentation of the line that it begins in."""
    lines = source[node.start_byte : node.end_byte].split(b'\n')
    line_start = source.rfind(b'\n', 0, node.start_byte) + 1
    return join_dedented(lines, source[line_start : node.start_byte])


def join_dedented(lines: Sequence[bytes], before: bytes) -> str:
    """Returns lines without an indentation.

    Args:
      lines: the lines; the first one begins after `before`.
      before: what stands before the first line. White space at its beginning is the indentation.
    """
    indent = before[: len(before) - len(before.lstrip())]
    rest = [line.removeprefix(indent).rstrip() for line in lines[1:]]
    return b'\n'.join([lines[0].rstrip(), *rest]).decode('utf-8', 'replace')


def make_function(
    node: 'Node', source: bytes, name: str, doc: str, is_empty: bool = False
) -> FoundFunction:
    """Returns a function whose documentation is outside of its node.

    Code and tokens of one without documentation are left empty, because nobody reads them.
    """
    if not doc.strip():
        return FoundFunction(name, get_line(node), '', '', ())
    return FoundFunction(
        name, get_line(node), doc, get_code(node, source), tokenize(node), is_empty
    )


def clean_block_comment(comment: str) -> str:
    """Returns a comment of /** */ or // lines without its delimiters."""
    return '\n'.join(_clean_comment_line(line.strip()) for line in comment.split('\n')).strip('\n')


def _clean_comment_line(line: str) -> str:
    line = line.removesuffix('*/')
    for delimiter in ('*', '/**', '//'):
        if line.startswith(delimiter):
            return line[len(delimiter) :].strip()
    return line.strip()


def clean_hash_comments(comments: Iterable[str]) -> str:
    """Returns lines of # comments without their delimiters."""
    return '\n'.join(comment.strip().strip('#').strip() for comment in comments).strip('\n')


def get_comment_before(node: 'Node', kinds: Sequence[str]) -> str:
    """Returns the comment directly before a node; '' if something else is there."""
    before = node.prev_sibling
    if before is None or before.type not in kinds:
        return ''
    return clean_block_comment(get_source(before))


def iterate_with_comments(
    nodes: Iterable['Node'],
) -> Iterator[tuple['Node', list['Node']]]:
    """Yields each node that is not a comment, with the comments between it and the node before."""
    comments: list[Node] = []
    for node in nodes:
        if node.type == 'comment':
            comments.append(node)
        else:
            yield node, comments
            comments = []
