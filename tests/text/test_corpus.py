"""Corpus: file formats, ids, fingerprints and error messages."""

import gzip
import json

import pytest
from etils import epath

from cpt_jax.benchmark_data.beir import read_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.corpus import Corpus


def write(folder, name: str, *rows: object) -> epath.Path:
    """Writes one line per row: strings unchanged, anything else as JSON. Returns the path."""
    path = epath.Path(folder) / name
    text = ''.join(
        (row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows
    ).encode()
    path.write_bytes(gzip.compress(text) if name.endswith('.gz') else text)
    return path


def test_beir_corpus_equals_what_evaluation_reads(tmp_path):
    rows = [
        {'_id': '007', 'title': 'A title', 'text': 'and a text '},
        {'_id': 8, 'title': None, 'text': 'no title'},
        '',
        {'_id': 'empty', 'title': '', 'text': ''},
    ]
    path = write(tmp_path, 'corpus.jsonl', *rows)
    corpus = Corpus(path)
    expected = [('007', 'A title and a text'), ('8', 'no title'), ('empty', '')]
    assert list(corpus) == expected
    assert list(corpus) == expected  # iterating again reads the file again
    assert dict(corpus) == read_texts(path, titles=True)
    assert len(corpus) == 3


def test_field_selects_the_text_and_gzip_changes_nothing(tmp_path):
    rows = [
        {'code': ' def f(): pass', 'title': 'unused', 'id': 'f'},
        {'code': 'x', 'func_name': 'g'},
        '',
        {'code': ''},
    ]
    # Rows without an id have their line index as id.
    expected = [('f', ' def f(): pass'), ('1', 'x'), ('3', '')]
    plain = Corpus(write(tmp_path, 'rows.jsonl', *rows), 'code')
    packed = Corpus(write(tmp_path, 'rows.jsonl.gz', *rows), 'code')
    assert list(plain) == list(packed) == expected
    assert plain.fingerprint == packed.fingerprint


def test_field_may_be_a_list_of_texts(tmp_path):
    rows = [{'id': 7, 'negatives': ['a', 'b ']}, {'negatives': []}, {'negatives': ['c']}]
    corpus = Corpus(write(tmp_path, 'pairs.jsonl', *rows), 'negatives')
    assert list(corpus) == [('7#1', 'a'), ('7#2', 'b '), ('2#1', 'c')]
    assert len(corpus) == 3


def test_txt_lines_have_their_line_index_as_id(tmp_path):
    corpus = Corpus(write(tmp_path, 'lines.txt', 'one', '', '{"text": "two"}'))
    assert list(corpus) == [('0', 'one'), ('2', '{"text": "two"}')]


def test_fingerprint_depends_on_ids_texts_and_order(tmp_path):
    a, b = {'_id': 'a', 'text': 'one'}, {'_id': 'b', 'text': 'two'}
    files = [
        (a, b),
        (b, a),
        (a,),
        (a, b | {'text': 'three'}),
        (a, b | {'_id': 'c'}),
        (a, b | {'title': 'two', 'text': ''}),
    ]
    fingerprints = [
        Corpus(write(tmp_path, f'{i}.jsonl', *rows)).fingerprint for i, rows in enumerate(files)
    ]
    # The last file has the same ids and texts as the first.
    assert len(set(fingerprints)) == 5
    assert fingerprints[5] == fingerprints[0]


@pytest.mark.parametrize(
    ('name', 'lines', 'field', 'expected'),
    [
        ('a.jsonl', ['{"_id": "1", "text": "x"}', '{"_id": '], '', r'a\.jsonl:2: not JSON'),
        ('a.jsonl', ['[1]'], '', r'a\.jsonl:1: a JSON object'),
        ('a.jsonl', ['[' * 100_000], '', r'a\.jsonl:1: JSON that cannot be read'),
        ('a.jsonl', ['{"_id": %s}' % ('1' * 5_000)], '', r'a\.jsonl:1: JSON that cannot be read'),
        (
            'a.jsonl',
            ['{"_id": "1", "code": "x"}'],
            '',
            r"a\.jsonl:1: no text in field 'text': .*'_id', 'code'",
        ),
        ('a.jsonl', ['', '{"text": "x"}'], 'body', r"a\.jsonl:2: no text in field 'body'"),
        ('a.jsonl', ['{"text": 3}'], '', r"a\.jsonl:1: no text in field 'text': .* are none"),
        ('a.jsonl', ['{"_id": null, "text": "x"}'], '', r'a\.jsonl:1: the id must be'),
        ('a.jsonl', ['{"_id": "1\\n2", "text": "x"}'], '', r'a\.jsonl:1: the id must be'),
        ('a.jsonl', ['{"text": "\\ud800"}'], '', r'a\.jsonl:1: contains a lone surrogate'),
        (
            'a.jsonl',
            ['{"_id": 7, "text": "x"}', '', '{"_id": "7", "text": "y"}'],
            '',
            r"a\.jsonl:3: the id '7' is used on an earlier line",
        ),
        (
            'a.jsonl',
            ['{"_id": "1", "text": "x"}', '{"text": "y"}'],
            '',
            r"a\.jsonl:2: the id '1' is used on an earlier line",
        ),
        ('a.jsonl', ['', ' '], '', r'a\.jsonl: contains no text'),
        ('a.csv', ['x'], '', r'a\.csv: expected a file name that ends in \.jsonl'),
        ('a.txt', ['x'], 'body', r'a\.txt: .* remove --field'),
    ],
)
def test_invalid_file_gives_a_one_line_error(tmp_path, name, lines, field, expected):
    path = write(tmp_path, name, *lines)
    with pytest.raises(UserError, match=expected) as error:
        Corpus(path, field)
    assert '\n' not in str(error.value)


def test_missing_file_gives_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match='none.jsonl: no such file'):
        Corpus(epath.Path(tmp_path) / 'none.jsonl')
