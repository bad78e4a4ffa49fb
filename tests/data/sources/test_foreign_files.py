"""Tests on small files of the kinds that people train on: each is read, or refused in one line.

The kinds come from public bug reports about data sets for embedding models. No kind may lose rows
without a word.
"""

import pytest

from cpt_jax.data.sources.csv_pairs import CsvSource
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.runtime.errors import UserError

PAIR = '{"x": "a b", "y": "c d"}\n'

# name -> (content, number of pairs and of bad rows, or the error with which it is refused)
JSON_LINES = {
    # Rows of which some texts are equal are all read; see test_equality.py for what follows.
    'good': (PAIR, (1, 0)),
    'case_only_x': (PAIR + PAIR.replace('a b', 'A B '), (2, 0)),
    'mirrored_pairs': (PAIR + '{"x": "c d", "y": "a b"}\n', (2, 0)),
    'same_prefix_y': (PAIR + PAIR.replace('a b', 'e').replace('c d', 'c d f'), (2, 0)),
    'array': ('[{"x": "a", "y": "b"}, {"x": "c", "y": "d"}]\n', 'no pairs'),
    'bigint': ('{"x": "a", "y": "b", "score": ' + '9' * 5000 + '}\n' + PAIR, (1, 1)),
    'blank': ('\n\n  \n', 'no pairs'),
    'bom': ('\ufeff' + PAIR, (1, 0)),
    'bom_mid_cat': (PAIR + '\ufeff' + PAIR, (1, 1)),
    'crlf': (PAIR.replace('\n', '\r\n') * 2, (2, 0)),
    'deep': ('{"x": "a", "y": "b", "m": ' + '[' * 50_000 + ']' * 50_000 + '}\n' + PAIR, (1, 1)),
    'dupkeys': ('{"x": "a", "y": "b", "x": "z"}\n', (1, 0)),
    'empty': ('', 'no pairs'),
    'flagembedding': ('{"query": "a", "pos": ["b"], "neg": ["c"]}\n', (1, 0)),
    'sentence_transformers': ('{"anchor": "a", "positive": "b", "negative": "c"}\n', (1, 0)),
    'group_types': (
        ''.join(f'{{"x": "a", "y": "c", "group": {g}}}\n' for g in ('7', 'null', '["u"]', '{}')),
        (4, 0),
    ),
    'id_number': ('{"x": "a", "y": "c", "id": 7}\n{"x": "a", "y": "c", "id": null}\n', (2, 0)),
    'long': ('{"x": "a", "y": "' + 'b ' * 60_000 + '"}\n' + PAIR, (1, 1)),
    'line_separators': ('{"x": "a\u2028\x85c", "y": "b\u2029"}\n', (1, 0)),
    'nan': ('{"x": NaN, "y": "c d"}\n' + PAIR, (1, 1)),
    'nbsp': ('{"x": "\u00a0", "y": "b"}\n' + PAIR, (1, 1)),
    'neg_dicts': ('{"x": "a", "y": "c", "negatives": [{"text": "n"}]}\n' + PAIR, (1, 1)),
    'neg_empty_string': ('{"x": "a", "y": "c", "negatives": ["n", ""]}\n' + PAIR, (2, 0)),
    'neg_emptylist': ('{"x": "a", "y": "c", "negatives": []}\n' + PAIR, (2, 0)),
    'neg_null': ('{"x": "a", "y": "c", "negatives": null}\n' + PAIR, (2, 0)),
    'neg_null_inside': ('{"x": "a", "y": "c", "negatives": ["n", null]}\n' + PAIR, (2, 0)),
    'neg_numbers': ('{"x": "a", "y": "c", "negatives": [1, 2]}\n' + PAIR, (1, 1)),
    'neg_string': ('{"x": "a", "y": "c", "negatives": "n"}\n' + PAIR, (1, 1)),
    'noeol': (PAIR + PAIR.rstrip(), (2, 0)),
    'nul': ('{"x": "a\\u0000b", "y": "c d"}\n' + PAIR, (2, 0)),
    'null': ('{"x": null, "y": "c d"}\n' + PAIR, (1, 1)),
    'numbers': ('{"x": 5, "y": "c d"}\n' + PAIR, (1, 1)),
    'pretty': ('{\n "x": "a",\n "y": "b"\n}\n', 'no pairs'),
    'surrogate': ('{"x": "a \\ud83d", "y": "c d"}\n' + PAIR, (1, 1)),
    'surrogate_pair': ('{"x": "a \\ud83d\\ude00", "y": "c d"}\n' + PAIR, (2, 0)),
    'trailing_comma': (PAIR.replace('}', '},') + PAIR, (1, 1)),
    'truncated': (PAIR * 3 + PAIR[:15], (3, 1)),
}


@pytest.mark.parametrize('name', JSON_LINES)
def test_json_lines(tmp_path, name):
    content, expected = JSON_LINES[name]
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(content.encode())
    check_counts(lambda **keys: JsonlSource(str(path), 'all', **keys), path, expected)


def test_negatives_that_are_read(tmp_path):
    path = tmp_path / 'rows.jsonl'
    for name, expected in [
        ('flagembedding', ('a', 'b', ('c',))),
        ('sentence_transformers', ('a', 'b', ('c',))),
        ('neg_empty_string', ('a', 'c', ('n',))),
        ('neg_null_inside', ('a', 'c', ('n',))),
    ]:
        path.write_text(JSON_LINES[name][0])
        assert JsonlSource(str(path), 'all')[0][:3] == expected


def make_table(separator='\t', **changed):
    """Returns 3,000 rows after a header; `changed` replaces line i by its argument `l<i>`."""
    lines = [separator.join(('q', 'd'))]
    lines += [separator.join((f'question {i}', f'answer {i}')) for i in range(1, 3001)]
    for name, line in changed.items():
        lines[int(name[1:])] = line.replace('\t', separator)
    return '\n'.join(lines) + '\n'


STRAY = '"best of 2010 list\tanswer'
# A row that ends in a quotation mark, and so would end the cell that a stray one began.
END = 'tv size\t55"'
# name -> (content, separator, outcome with quotes, outcome with quoting='none')
TABLES = {
    'one_cell_begins_with_quote': (make_table(l11=STRAY), '\t', (2999, 1), (3000, 0)),
    'quote_near_end': (make_table(l2994=STRAY), '\t', (2999, 1), (3000, 0)),
    'two_cells_begin_with_quote': (make_table(l11=STRAY, l2001=STRAY), '\t', (2998, 2), (3000, 0)),
    'swallow_whole_good_row': (
        make_table(l11='title\t"Gone with the wind', l2001=END), '\t', (2999, 1), (3000, 0),
    ),
    'swallow_a': (
        make_table(l11='who wrote it\t"Gone with the wind" author', l2001=END),
        '\t', (2999, 1), (3000, 0),
    ),
    'quoted_title': (
        make_table(l4='"A Tale of Two Cities" author\tDickens', l5='tv\t55" or 65"'),
        '\t', (2999, 1), (3000, 0),
    ),
    'csv_swallow_whole_good_row': (
        make_table(',', l11='title\t"Gone with the wind', l2001=END), ',', (2999, 1), None,
    ),
    'csv_two_stray_quotes': (make_table(',', l11=STRAY, l2001=STRAY), ',', (2998, 2), None),
    'csv_stray_then_inner': (make_table(',', l11=STRAY, l2001='a "b" c\td'), ',', (2999, 1), None),
    'csv_backslash_escaped': ('q,d\n"say \\"hi\\" now",c\ne,f\n', ',', (1, 1), None),
    'csv_crlf_bom': ('\ufeffq,d\r\na,b\r\nc,d\r\n', ',', (2, 0), None),
    'csv_header_case': ('Q,D\na,b\n', ',', 'no pairs', None),
    'csv_index_col': (',q,d\n0,a,b\n1,c,d\n', ',', (2, 0), None),
    'csv_nan': ('q,d\na,\nb,NaN\n', ',', (1, 1), None),
    'csv_nul': ('q,d\na\0b,c\n', ',', (1, 0), None),
    'csv_carriage_returns': ('q,d\ra,b\r', ',', 'carriage return', None),
    'csv_column_twice': ('q,d,d\na,b,c\n', ',', 'twice', None),
}  # fmt: skip


@pytest.mark.parametrize('name', TABLES)
def test_tables(tmp_path, name):
    content, separator, quoted, unquoted = TABLES[name]
    path = tmp_path / 'rows.csv'
    path.write_bytes(content.encode())

    def read(**keys):
        return CsvSource(str(path), 'all', 'q', 'd', '', separator=separator, **keys)

    check_counts(read, path, quoted)
    if unquoted:
        check_counts(lambda **keys: read(quoting='none', **keys), path, unquoted)


def test_utf16_is_refused(tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_bytes('q,d\r\na,b\r\n'.encode('utf-16'))
    check_counts(
        lambda **keys: CsvSource(str(path), 'all', 'q', 'd', '', **keys), path, 'not UTF-8'
    )
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(PAIR.encode('utf-16'))
    check_counts(lambda **keys: JsonlSource(str(path), 'all', **keys), path, 'no pairs')


def check_counts(read, path, expected):
    """Asserts the counts of a file, and that bad rows are an error with one line by default."""
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as error:
            read(max_bad_share=1)
        assert path.name in str(error.value)
        return
    pairs, bad = expected
    source = read(max_bad_share=1)
    assert (len(source), source.problems.bad) == (pairs, bad)
    assert max(len(source[i].y) for i in range(pairs)) < 50
    if bad and bad / (pairs + bad) > 0.001:
        with pytest.raises(UserError, match=rf'{path.name}:\d+: .* cannot be used') as error:
            read()
        assert '\n' not in str(error.value)


def test_columns_of_sentence_transformers(tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_text('negative_2,anchor,negative_1,positive,negative_10\nn2,a,n1,p,\n')
    assert CsvSource(str(path), 'all')[0][:3] == ('a', 'p', ('n1', 'n2'))
    with pytest.raises(UserError, match="no column 'sent0'"):
        CsvSource(str(path), 'all', rules=1)
