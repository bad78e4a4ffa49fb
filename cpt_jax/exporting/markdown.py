"""Escapes values that users typed, for the places in which a model card has them."""

import html
import json
import re
import shlex

import jinja2


def add_filters(environment: jinja2.Environment) -> None:
    """Adds a filter for each kind of place: prose, code, block, python, shell, json_text, yaml."""
    environment.filters |= {
        'prose': escape_prose,
        'code': make_code_span,
        'block': make_code_block,
        'python': repr,
        'shell': shlex.quote,
        'json_text': lambda value: json.dumps(value, ensure_ascii=False),
        'yaml': make_yaml_scalar,
    }


def escape_prose(value: object) -> str:
    """Returns a text for a sentence, a heading or a cell of a table, on one line."""
    text = html.escape(' '.join(str(value).split()), quote=False)
    return re.sub(r'([\\`*\[\]|]|^#)', r'\\\1', text)


def make_code_span(value: object) -> str:
    """Returns a text as code within a line or a cell of a table."""
    text = str(value).replace('\r', ' ').replace('\n', ' ').replace('|', r'\|')
    fence = '`' * (1 + _find_longest_run(text))
    # A text that begins or ends with a backtick needs a space, which is not displayed.
    space = ' ' if text[:1] == '`' or text[-1:] == '`' or not text else ''
    return f'{fence}{space}{text}{space}{fence}'


def make_code_block(value: object) -> str:
    """Returns a text as a block of code."""
    text = str(value)
    fence = '`' * max(3, 1 + _find_longest_run(text))
    return f'{fence}\n{text}\n{fence}'


def make_yaml_scalar(value: object) -> str:
    """Returns a text as a YAML scalar, quoted unless it is a plain word such as apache-2.0."""
    text = str(value)
    is_plain = re.fullmatch(r'[A-Za-z][\w.+-]*', text, re.ASCII)
    words = ('true', 'false', 'yes', 'no', 'on', 'off', 'null', 'y', 'n')
    return text if is_plain and text.lower() not in words else json.dumps(text)


def _find_longest_run(text: str) -> int:
    """Returns the length of the longest run of backticks."""
    return max(map(len, re.findall('`+', text)), default=0)
