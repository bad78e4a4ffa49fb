"""(docstring, function) pairs to evaluate on: the held-out Python packages, or a file of
CodeSearchNet.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from cpt_jax.data.filters import first_paragraph
from cpt_jax.data.python_functions import without_docstring
from cpt_jax.data.sources.python_source import PythonSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import file_fingerprint, read_json_lines, text_field

# The names of the original files, then those of the Hugging Face copies.
DOC_FIELDS = 'docstring', 'func_documentation_string'
CODE_FIELDS = 'code', 'func_code_string'
DOC_TOKEN_FIELDS = (
    'docstring_tokens',
    'func_documentation_string_tokens',
    'func_documentation_tokens',
)
CODE_TOKEN_FIELDS = 'code_tokens', 'func_code_tokens'
URL_FIELDS = 'url', 'func_code_url'


class CodePairs(NamedTuple):
    """`codes[i]` is the answer to `queries[i]`; `settings` says where they come from and what was
    done to them.

    `other_codes` are the answers to none: more candidates.
    """

    queries: list[str]
    codes: list[str]
    settings: dict[str, object]
    other_codes: list[str] = []


def python_source_pairs(trained_on: Sequence[Mapping] = ()) -> CodePairs:
    """The pairs of the packages that training holds out.

    Args:
      trained_on: the arguments of each PythonSource that the model was trained on. How many of the
        functions were among them stands in the settings: none, unless the run held out less or
        other packages.
    """
    source = PythonSource(split='heldout')
    pairs = [source[i] for i in range(len(source))]
    text = 'first paragraph of the docstring; function without its docstring, from def on'
    queries, codes = [pair.x for pair in pairs], [pair.y for pair in pairs]
    trained = (PythonSource('train', **arguments) for arguments in trained_on)
    seen = {part[i].y for part in trained for i in range(len(part))} & set(codes)
    found = _with_settings(queries, codes, text, source.fingerprint)
    return found._replace(settings=found.settings | {'functions_trained_on': len(seen)})


def heldout_fingerprint() -> str:
    """Returns the fingerprint of the pairs of `python_source_pairs`."""
    return PythonSource(split='heldout').fingerprint


def file_pairs(
    path: epath.Path, text: str = 'raw', codebase: epath.Path | None = None
) -> CodePairs:
    """The pairs of a .jsonl or .jsonl.gz file.

    Args:
      path: the file, with CodeSearchNet's fields or those of its Hugging Face copy.
      text: 'raw': first paragraph of the docstring, and code, which for Python loses its docstring
        (CodeSearchNet leaves it in `code`). 'tokens': the token fields joined by spaces, as
        CodeBERT has them.
      codebase: a file of the same form with more codes, as GraphCodeBERT has it: those whose "url"
        no pair has are other candidates.

    Raises UserError with file and line for a line that cannot be used, and for a file without
    lines.
    """
    read_query, read_code = {
        'raw': (_raw_query, _raw_code),
        'tokens': (_query_tokens, _code_tokens),
    }[text]
    pairs, urls = [], set()
    for where, row in read_json_lines(path):
        pairs.append((read_query(row, where), read_code(row, where)))
        urls |= {text_field(row, where, *URL_FIELDS)} if codebase else set()
    if not pairs:
        raise UserError(
            f'{path}: the file is empty: CodeSearchNet lines with docstring and code are expected'
        )
    how = {
        'raw': 'first paragraph of the docstring; code, for Python without docstring',
        'tokens': 'docstring_tokens and code_tokens, joined by spaces',
    }
    queries, codes = zip(*pairs, strict=True)
    found = _with_settings(
        list(queries),
        list(codes),
        how[text],
        file_fingerprint(path, *([codebase] if codebase else [])),
    )
    if not codebase:
        return found
    rows = (
        (where, row)
        for where, row in read_json_lines(codebase)
        if text_field(row, where, *URL_FIELDS) not in urls
    )
    return found._replace(other_codes=[read_code(row, where) for where, row in rows])


def _with_settings(queries: list[str], codes: list[str], text: str, fingerprint: str) -> CodePairs:
    given_away = sum(
        query in ' '.join(code.split()) for query, code in zip(queries, codes, strict=True)
    )
    settings = {
        'text': text,
        'data': fingerprint,
        'pairs': len(queries),
        'queries_verbatim_in_their_code': given_away,
    }
    return CodePairs(queries, codes, settings)


def _raw_query(row: dict, where: str) -> str:
    return first_paragraph(text_field(row, where, *DOC_FIELDS))


def _raw_code(row: dict, where: str) -> str:
    code = text_field(row, where, *CODE_FIELDS)
    return (
        without_docstring(code) if str(row.get('language', 'python')).lower() == 'python' else code
    )


def _query_tokens(row: dict, where: str) -> str:
    return _joined(row, where, *DOC_TOKEN_FIELDS)


def _code_tokens(row: dict, where: str) -> str:
    return _joined(row, where, *CODE_TOKEN_FIELDS)


def _joined(row: dict, where: str, *names: str) -> str:
    name = next((name for name in names if name in row), names[0])
    tokens = row.get(name)
    if (
        not isinstance(tokens, list)
        or not tokens
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise UserError(f'{where}: field {name!r} must be a list of tokens, and not empty')
    return ' '.join(tokens)
