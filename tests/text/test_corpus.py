"""Files of texts: their forms, and what is refused."""

import gzip
import json

import pytest
from etils import epath

from cpt_jax.benchmark_data.beir import read_texts
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.corpus import Corpus


def write(folder, name: str, *rows: object) -> epath.Path:
    """A file with a line for each row: a string as it is, anything else as JSON."""
    path = epath.Path(folder) / name
    text = ''.join(
        (row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows
    ).encode()
    path.write_bytes(gzip.compress(text) if name.endswith('.gz') else text)
    return path


def test_a_corpus_of_beir_is_read_as_evaluation_reads_it(tmp_path):
    rows = [
        {'_id': '007', 'title': 'A title', 'text': 'and a text '},
        {'_id': 8, 'title': None, 'text': 'no title'},
        '',
        {'_id': 'empty', 'title': '', 'text': ''},
    ]
    path = write(tmp_path, 'corpus.jsonl', *rows)
    corpus = Corpus(path)
    assert (
        list(corpus)
        == [('007', 'A title and a text'), ('8', 'no title'), ('empty', '')]
        == list(corpus)
    )
    assert dict(corpus) == read_texts(path, titles=True) and len(corpus) == 3


def test_rows_of_ones_own_and_packed_ones(tmp_path):
    rows = [
        {'code': ' def f(): pass', 'title': 'unused', 'id': 'f'},
        {'code': 'x', 'func_name': 'g'},
        '',
        {'code': ''},
    ]
    # The number of the line is the id of a row without one.
    expected = [('f', ' def f(): pass'), ('1', 'x'), ('3', '')]
    plain = Corpus(write(tmp_path, 'rows.jsonl', *rows), 'code')
    packed = Corpus(write(tmp_path, 'rows.jsonl.gz', *rows), 'code')
    assert list(plain) == list(packed) == expected and plain.fingerprint == packed.fingerprint


def test_lines_of_text(tmp_path):
    corpus = Corpus(write(tmp_path, 'lines.txt', 'one', '', '{"text": "two"}'))
    assert list(corpus) == [('0', 'one'), ('2', '{"text": "two"}')]


def test_the_fingerprint_is_of_ids_texts_and_their_order(tmp_path):
    a, b = {'_id': 'a', 'text': 'one'}, {'_id': 'b', 'text': 'two'}
    files = [
        (a, b),
        (b, a),
        (a,),
        (a, b | {'text': 'three'}),
        (a, b | {'_id': 'c'}),
        (a, b | {'title': 'two', 'text': ''}),
    ]
    digits = [
        Corpus(write(tmp_path, f'{i}.jsonl', *rows)).fingerprint for i, rows in enumerate(files)
    ]
    # The last one's texts are the first one's.
    assert len(set(digits)) == 5 and digits[5] == digits[0]


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
        ('a.jsonl', ['{"text": "\\ud800"}'], '', r'a\.jsonl:1: holds half a character'),
        (
            'a.jsonl',
            ['{"_id": 7, "text": "x"}', '', '{"_id": "7", "text": "y"}'],
            '',
            r"a\.jsonl:3: the id '7' stands on an earlier line",
        ),
        (
            'a.jsonl',
            ['{"_id": "1", "text": "x"}', '{"text": "y"}'],
            '',
            r"a\.jsonl:2: the id '1' stands on an earlier line",
        ),
        ('a.jsonl', ['', ' '], '', r'a\.jsonl: holds no text'),
        ('a.csv', ['x'], '', r'a\.csv: a file that ends in \.jsonl or \.txt'),
        ('a.txt', ['x'], 'body', r'a\.txt: .* leave --field out'),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, name, lines, field, expected):
    path = write(tmp_path, name, *lines)
    with pytest.raises(UserError, match=expected) as error:
        Corpus(path, field)
    assert '\n' not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match='none.jsonl: no such file'):
        Corpus(epath.Path(tmp_path) / 'none.jsonl')
