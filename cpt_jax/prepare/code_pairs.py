"""Pair rule: (documentation, function) pairs of source code, with the filters of CodeSearchNet.

Husain et al. 2019 (arXiv 1909.09436, section 2) describe the filters, and `function_parser` of
github/CodeSearchNet is their code. Of a documentation, the first paragraph is kept. A function is
left out if

- its path or its name contains 'test', or its path 'vendor' (Go, Ruby) or 'node_modules'
  (JavaScript);
- it is a constructor or a method that every class has, such as `__str__`, `toString` and `<=>`;
- its documentation has fewer than three tokens;
- it has fewer than three lines that are not blank, or its body does nothing;
- it has fewer than ten identifiers (code_duplicates.py, which also finds duplicates).

Where the paper and its code differ, both are followed: the code has no filter of names with
'test', its filter of Python's `__names__` does not work for methods, and for Go it keeps all
paragraphs. The documentation is never part of the code.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from cpt_jax.prepare.document import Document, Dropped, TextPair
from cpt_jax.prepare.parsers.languages import LANGUAGES, find_language, load_parser
from cpt_jax.prepare.parsers.nodes import CODESEARCHNET, SCOPES, FoundFunction
from cpt_jax.runtime.errors import UserError

MIN_DOC_TOKENS = 3
MIN_CODE_LINES = 3
MIN_IDENTIFIERS = 10

# A word, or a run of one punctuation mark, as in the docstring_tokens of CodeSearchNet.
_DOC_TOKEN = re.compile(
    r'\(\)|\{\}|\[\]|([\\.():\[\]{}=*;>+/-])\1*|[^\s,\'"`.():\[\]=*;>{}+\-/\\]+'
)
_IDENTIFIER = re.compile('[_a-zA-Z][_a-zA-Z0-9]*')


def pair_functions(document: Document, scope: str = CODESEARCHNET) -> Iterator[TextPair | Dropped]:
    """Yields (first paragraph of the documentation, function without it) of a source file.

    A pair has the fields of its document and `function`, the name of the function, with its line.

    Args:
      document: the file, with the fields `path` and `language`.
      scope: which functions are found. 'codesearchnet': those that the parsers of CodeSearchNet
        visit. 'all': also methods of nested classes, arrow functions, methods of JavaScript
        classes, functions that are assigned, and others (see cpt_jax/prepare/parsers/).
    """
    path = document.fields.get('path', document.identity)
    language = document.fields.get('language') or find_language(path)
    if language not in LANGUAGES:
        yield Dropped('file in another programming language')
        return
    rejected: Counter[str] = Counter()
    for function in find_documented_functions(document.text, language, path, scope, rejected):
        name = f'{function.name}:{function.line}'
        yield TextPair(function.doc, function.code, {**document.fields, 'function': name})
    del rejected['seen']
    for reason, number in rejected.items():
        yield Dropped(f'function: {reason}', number)


def check_functions(scope: str = CODESEARCHNET) -> None:
    """Raises UserError if the scope is unknown, or tree-sitter is not installed."""
    if scope not in SCOPES:
        raise UserError(f'scope is {scope!r} and must be one of {", ".join(SCOPES)}')
    for language in LANGUAGES:
        load_parser(language)


def find_documented_functions(
    text: str, language: str, path: str, scope: str, rejected: Counter[str]
) -> list[FoundFunction]:
    """Returns the functions of a file that pass the filters; `doc` is their first paragraph.

    Args:
      text: source of the file.
      language: name in LANGUAGES.
      path: path of the file, relative to the root of its source tree.
      scope: see `pair_functions`.
      rejected: incremented for each rejected function, by reason; 'seen' counts all functions.
    """
    if any(part in path.lower() for part in LANGUAGES[language].excluded_paths):
        rejected['files with a test path'] += 1
        return []
    source = text.replace('\r\n', '\n').replace('\r', '\n').encode('utf-8', 'replace')
    tree = load_parser(language).parse(source)
    kept = []
    for function in LANGUAGES[language].find_functions(tree.root_node, source, scope):
        rejected['seen'] += 1
        function = function._replace(doc=extract_summary(function.doc))
        reason = explain_rejected_function(function, language)
        if reason:
            rejected[reason] += 1
        else:
            kept.append(function)
    return kept


def extract_summary(doc: str) -> str:
    """Returns the first paragraph of a documentation, on one line.

    A documentation without an empty line ends at its first '@', where the tags of Javadoc begin.
    """
    paragraphs = re.split(r'\n[ \t]*\n', doc.strip(), maxsplit=1)
    summary = paragraphs[0]
    if len(paragraphs) == 1:
        summary = summary.partition('@')[0]
    return ' '.join(summary.split())


def explain_rejected_function(function: FoundFunction, language: str) -> str:
    """Returns the reason why a function is rejected, or ''.

    Args:
      function: the function, with the first paragraph of its documentation.
      language: name in LANGUAGES.
    """
    if not function.doc:
        return 'no documentation'
    name = function.own_name
    is_dunder = name.startswith('__') and name.endswith('__')
    if is_dunder or name in LANGUAGES[language].excluded_names:
        return 'method of every class'
    if 'test' in name.lower():
        return 'test name'
    if function.is_empty:
        return 'no implementation'
    if len(tokenize_doc(function.doc)) < MIN_DOC_TOKENS:
        return 'short documentation'
    if sum(bool(line.strip()) for line in function.code.split('\n')) < MIN_CODE_LINES:
        return 'short implementation'
    if len(list_identifiers(function.tokens, language)) < MIN_IDENTIFIERS:
        return 'few identifiers'
    return ''


def tokenize_doc(doc: str) -> list[str]:
    """Returns the words and punctuation of a documentation."""
    return [match.group() for match in _DOC_TOKEN.finditer(doc)]


def list_identifiers(tokens: Sequence[str], language: str) -> list[str]:
    """Returns the tokens by which functions are compared: those that begin as an identifier and are
    not reserved words.
    """
    reserved = LANGUAGES[language].reserved_words
    return [token for token in tokens if _IDENTIFIER.match(token) and token not in reserved]
