import csv
import io

import pytest

from cpt_jax.data.equality import STRIPPED
from cpt_jax.data.pairs import Pair
from cpt_jax.data.sources.csv_pairs import CsvSource
from cpt_jax.runtime.errors import UserError

HEADER = b'sent0,sent1,hard_neg\n'


@pytest.fixture
def write_csv(tmp_path):
    """Returns a function that writes a file and returns its path."""

    def write(content: bytes, name='nli.csv') -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def test_rows_equal_those_of_the_csv_module(write_csv):
    """Cells contain everything that RFC 4180 quotes, line breaks included, and bare quotes, which
    some programs write.
    """
    rows = [
        ('a man, riding', 'he said "hi"', 'no'),
        ('two\nlines', 'é 🎉', 'three\r\nlines\n'),
        (' spaces ', 'a 5" nail', '"'),
        ('last', 'one', ''),
    ]
    out = io.StringIO()
    csv.writer(out, lineterminator='\r\n').writerows([('sent0', 'sent1', 'hard_neg'), *rows[:2]])
    # A blank line, and a cell with a bare quotation mark.
    content = out.getvalue().encode() + b'\r\n' + b' spaces ,a 5" nail,""""\n' + b'last,one,'
    source = CsvSource(write_csv(b'\xef\xbb\xbf' + content), 'all', max_bad_share=0)
    expected = [(x, y, (hard,) if hard else ()) for x, y, hard in rows]
    assert [source[i][:3] for i in range(len(source))] == expected
    assert [source[i].id for i in range(len(source))] == [
        'nli.csv:2',
        'nli.csv:3',
        'nli.csv:8',
        'nli.csv:9',
    ]
    assert source.summary().startswith(
        'csv/all: 4 pairs of 4 rows in 1 files; all rows can be used; 1 rows span several lines '
        '(longest: 4 lines at '
    )


def test_columns_and_separator_are_configurable(write_csv):
    path = write_csv(
        b'name\tq\tneg\tgood\tother\n7\tquery\tn\tgood\tm\n8\tquery\t\tgood\tm\n', 'rows.tsv'
    )
    source = CsvSource(
        path, 'all', x='q', y='good', negatives=('neg', 'other'), id='name', separator='\t'
    )
    assert source[0] == Pair('query', 'good', ('n', 'm'), '7')
    assert source[1] == Pair('query', 'good', ('m',), '8')
    assert CsvSource(path, 'all', x='q', y='good', negatives='', separator='\t')[0].negatives == ()


BAD = {
    'not UTF-8': b'caf\xe9,b,c\n',
    'not CSV': b'"a"b,b,c\n',
    'the number of cells differs from the header': b'a,b\n',
    "'sent0' is empty": b' ,b,c\n',
    "'hard_neg' is longer than 50 characters": b'a,b,' + b'c' * 51 + b'\n',
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_row_is_counted_and_reported_with_its_line(write_csv, kind):
    path = write_csv(HEADER + b'a,b,c\n' * 3 + BAD[kind] + b'd,e,f\n')
    with pytest.raises(UserError, match=rf'nli\.csv:5: {kind}.*1 of 5 rows cannot be used'):
        CsvSource(path, 'all', max_chars=50)
    source = CsvSource(path, 'all', max_chars=50, max_bad_share=0.5)
    assert len(source) == 4
    assert source[3] == Pair('d', 'e', ('f',), 'nli.csv:6')
    assert source.problems.counts == {kind: 1}


def test_unclosed_quote_loses_only_its_line(write_csv):
    path = write_csv(HEADER + b'a,b,c\n"d,e,f\ng,h,i\n')
    with pytest.raises(UserError, match=r'nli\.csv:3: a quotation mark without its counterpart'):
        CsvSource(path, 'all')
    source = CsvSource(path, 'all', max_bad_share=1)
    assert [source[i].id for i in range(len(source))] == ['nli.csv:2', 'nli.csv:4']
    before = CsvSource(path, 'all', max_bad_share=1, rules=1, equal_texts=STRIPPED)
    assert len(before) == 1
    # Computed with version 52bcc22.
    assert before.fingerprint == '7212f96eaecfc13dd2821f32181f881b'


def test_max_row_lines_limits_rows(write_csv):
    path = write_csv(HEADER + b'"a\n\nb,",c,d\ne,f,g\n')
    assert [len(CsvSource(path, 'all', max_row_lines=n, max_bad_share=1)) for n in (2, 3)] == [1, 2]
    with pytest.raises(UserError, match='max_row_lines=0: must be 1 or more'):
        CsvSource(path, 'all', max_row_lines=0)


def test_share_of_bad_rows_counts_their_lines(write_csv):
    path = write_csv(HEADER + b'"a\nb\nc",d\n' + b'e,f,g\n' * 7)
    with pytest.raises(UserError, match=r'1 of 8 rows \(3 of 10 lines\) cannot be used'):
        CsvSource(path, 'all', max_bad_share=0.29)
    assert len(CsvSource(path, 'all', max_bad_share=0.3)) == 7
    assert len(CsvSource(path, 'all', max_bad_share=0.125, rules=1)) == 7


def test_without_quoting_a_quotation_mark_is_an_ordinary_character(write_csv):
    path = write_csv(b'q\td\n"A Tale" author\tDickens\n"tv size\t55"\r\n')
    names = {'x': 'q', 'y': 'd', 'negatives': '', 'separator': '\t'}
    source = CsvSource(path, 'all', quoting='none', **names)
    assert [source[i][:2] for i in range(len(source))] == [
        ('"A Tale" author', 'Dickens'),
        ('"tv size', '55"'),
    ]
    for wrong in ({'quoting': 'all'}, {'quoting': 'none', 'rules': 1}):
        with pytest.raises(UserError, match='quoting='):
            CsvSource(path, 'all', **names, **wrong)


@pytest.mark.parametrize(
    'header, message',
    [
        (b'sent0,sent0,hard_neg\n', "names the column 'sent0' twice"),
        (b'sent0,sent1,hard_neg\ra,b,c\r', 'carriage return alone'),
        ('sent0,sent1,hard_neg\n'.encode('utf-16'), 'the header is not UTF-8'),
    ],
)
def test_unusable_header_is_refused(write_csv, header, message):
    with pytest.raises(UserError, match=rf'nli\.csv: .*{message}'):
        CsvSource(write_csv(header + b'a,b,c\n'), 'all')


def test_fingerprint_depends_on_the_header(write_csv):
    swapped = CsvSource(write_csv(b'sent1,sent0,hard_neg\na,b,c\n', 'swapped.csv'), 'all')
    source = CsvSource(write_csv(HEADER + b'a,b,c\n'), 'all')
    assert source[0][:2] == swapped[0][1::-1]
    assert source.fingerprint != swapped.fingerprint


def test_missing_column_is_refused(write_csv):
    with pytest.raises(
        UserError,
        match=r"nli\.csv:2: no column 'premise': the header has 'sent0', 'sent1', 'hard_neg'",
    ):
        CsvSource(write_csv(HEADER + b'a,b,c\n'), 'all', x='premise')
    with pytest.raises(UserError, match="separator='--'"):
        CsvSource(write_csv(HEADER), 'all', separator='--')


def test_rows_with_equal_x_are_held_out_together(write_csv):
    path = write_csv(HEADER + b''.join(b'x %d,y,z\n' % (i // 3) for i in range(300)))
    train, heldout = (CsvSource(path, split, holdout=0.3) for split in ('train', 'heldout'))
    train_x, heldout_x = ({source[i].x for i in range(len(source))} for source in (train, heldout))
    assert len(train) + len(heldout) == 300
    assert not train_x & heldout_x
    assert 15 < len(heldout_x) < 45
    assert train.fingerprint != heldout.fingerprint


def test_column_with_grades(write_csv):
    path = write_csv(b'x,y,score\na,b,2.5\nc,d, 1e0\n')
    source = CsvSource(path, 'all', x='x', y='y', negatives='', score='score')
    assert [source[i].scores for i in range(2)] == [(2.5,), (1.0,)]
    assert 'score' not in repr(CsvSource(path, 'all', x='x', y='y', negatives='')._fields)
    path = write_csv(b'x,y,score\na,b,high\n')
    with pytest.raises(UserError, match=r"nli.csv:2: 'score' is not a number: high"):
        CsvSource(path, 'all', x='x', y='y', negatives='', score='score')
    with pytest.raises(UserError, match=r"nli.csv:2: no column 'grade'"):
        CsvSource(path, 'all', x='x', y='y', negatives='', score='grade')
