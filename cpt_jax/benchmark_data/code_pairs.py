"""(docstring, function) pairs for evaluation: held-out Python packages, or a CodeSearchNet file."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from cpt_jax.data.filters import extract_first_paragraph
from cpt_jax.data.python_functions import remove_docstring
from cpt_jax.data.sources.python_source import PythonSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.text_lines import compute_file_fingerprint, get_text_field, read_json_lines

# Field names in the original files, then in their Hugging Face copies.
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
    """Pairs for code search.

    Attributes:
      queries: queries.
      codes: functions; `codes[i]` is the answer to `queries[i]`.
      settings: origin and preprocessing of the pairs.
      other_codes: additional candidates, which are not the answer to any query.
    """

    queries: list[str]
    codes: list[str]
    settings: dict[str, object]
    other_codes: list[str] = []


def load_python_source_pairs(trained_on: Sequence[Mapping] = ()) -> CodePairs:
    """Loads the pairs of the packages that training holds out.

    Args:
      trained_on: arguments of each PythonSource that the model was trained on. The number of
        functions that are also training data is stored in the settings. It is 0 unless the run held
        out fewer or other packages than the default.
    """
    source = PythonSource(split='heldout')
    pairs = [source[i] for i in range(len(source))]
    text = 'first paragraph of the docstring; function without its docstring, from def on'
    queries = [pair.x for pair in pairs]
    codes = [pair.y for pair in pairs]
    trained = (PythonSource('train', **arguments) for arguments in trained_on)
    seen = {part[i].y for part in trained for i in range(len(part))} & set(codes)
    found = _make_code_pairs(queries, codes, text, source.fingerprint)
    return found._replace(settings=found.settings | {'functions_trained_on': len(seen)})


def compute_heldout_fingerprint() -> str:
    """Returns the fingerprint of the pairs of `load_python_source_pairs`."""
    return PythonSource(split='heldout').fingerprint


def load_file_pairs(
    path: epath.Path, text: str = 'raw', codebase: epath.Path | None = None
) -> CodePairs:
    """Loads the pairs of a .jsonl or .jsonl.gz file.

    Args:
      path: file with the fields of CodeSearchNet, or those of its Hugging Face copy.
      text: 'raw' for the first paragraph of the docstring and the code (of Python code, the
        docstring is removed, which CodeSearchNet leaves in `code`), or 'tokens' for the token
        fields joined by spaces, as in CodeBERT.
      codebase: file of the same format with more codes, as in GraphCodeBERT. Codes whose "url" is
        in no pair are added as candidates.

    Raises:
      UserError: a line cannot be used (the message has file and line), or the file is empty.
    """
    read_query, read_code = {
        'raw': (_get_raw_query, _get_raw_code),
        'tokens': (_get_query_tokens, _get_code_tokens),
    }[text]
    pairs, urls = [], set()
    for where, row in read_json_lines(path):
        pairs.append((read_query(row, where), read_code(row, where)))
        if codebase:
            urls.add(get_text_field(row, where, *URL_FIELDS))
    if not pairs:
        raise UserError(
            f'{path}: the file is empty: CodeSearchNet lines with docstring and code are expected'
        )
    how = {
        'raw': 'first paragraph of the docstring; code, for Python without docstring',
        'tokens': 'docstring_tokens and code_tokens, joined by spaces',
    }
    queries, codes = zip(*pairs, strict=True)
    files = [path, codebase] if codebase else [path]
    found = _make_code_pairs(
        list(queries), list(codes), how[text], compute_file_fingerprint(*files)
    )
    if not codebase:
        return found
    rows = (
        (where, row)
        for where, row in read_json_lines(codebase)
        if get_text_field(row, where, *URL_FIELDS) not in urls
    )
    return found._replace(other_codes=[read_code(row, where) for where, row in rows])


def _make_code_pairs(
    queries: list[str], codes: list[str], text: str, fingerprint: str
) -> CodePairs:
    """Returns pairs with their settings.

    Args:
      queries: queries.
      codes: the function for each query.
      text: how the texts were made, for the settings.
      fingerprint: fingerprint of the data.
    """
    verbatim = sum(
        query in ' '.join(code.split()) for query, code in zip(queries, codes, strict=True)
    )
    settings = {
        'text': text,
        'data': fingerprint,
        'pairs': len(queries),
        'queries_verbatim_in_their_code': verbatim,
    }
    return CodePairs(queries, codes, settings)


def _get_raw_query(row: dict, where: str) -> str:
    return extract_first_paragraph(get_text_field(row, where, *DOC_FIELDS))


def _get_raw_code(row: dict, where: str) -> str:
    code = get_text_field(row, where, *CODE_FIELDS)
    if str(row.get('language', 'python')).lower() == 'python':
        return remove_docstring(code)
    return code


def _get_query_tokens(row: dict, where: str) -> str:
    return _join_tokens(row, where, *DOC_TOKEN_FIELDS)


def _get_code_tokens(row: dict, where: str) -> str:
    return _join_tokens(row, where, *CODE_TOKEN_FIELDS)


def _join_tokens(row: dict, where: str, *names: str) -> str:
    """Returns the tokens of the first field that the row has, joined by spaces."""
    name = next((name for name in names if name in row), names[0])
    tokens = row.get(name)
    if (
        not isinstance(tokens, list)
        or not tokens
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise UserError(f'{where}: field {name!r} must be a list of tokens that is not empty')
    return ' '.join(tokens)
