import gzip
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cpt_jax.data import local_copies
from cpt_jax.data import rows as rows_module
from cpt_jax.data.equality import NORMALIZED, STRIPPED, normalize_text
from cpt_jax.data.mixture import make_batches
from cpt_jax.data.pairs import Pair
from cpt_jax.data.sources.jsonl import JsonlSource
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.file_checksums import compute_checksum, write_checksums

GOOD = b'{"x": "a", "y": "b"}'


@pytest.fixture
def rows(tmp_path):
    """Returns a function: rows(b'...') or rows([dict, ...]) writes a file and returns its path."""

    def write(content, name='rows.jsonl'):
        path = tmp_path / 'data' / name
        path.parent.mkdir(exist_ok=True)
        if not isinstance(content, bytes):
            content = b''.join(json.dumps(row).encode() + b'\n' for row in content)
        path.write_bytes(content)
        return str(path)

    return write


def numbered(n, **more):
    return [{'x': f'x {i}', 'y': f'y {i}', **more} for i in range(n)]


def test_rows_are_read_as_pairs(rows):
    path = rows(
        [
            {'x': 'é', 'y': 'b\nc', 'negatives': ['n', 'm'], 'id': 7},
            {'y': 'd', 'x': 'c', 'extra': 1, 'negatives': None},
        ]
    )
    source = JsonlSource(path, 'all')
    assert len(source) == 2
    assert source.documents is None
    assert source[0] == Pair('é', 'b\nc', ('n', 'm'), '7')
    assert source[1] == Pair('c', 'd', (), 'rows.jsonl:2')
    with pytest.raises(IndexError):
        source[2]


def test_gzipped_files_have_the_same_rows(rows, cache):
    content = [{'x': f'x {i}', 'y': f'y {i}'} for i in range(3)]
    plain = JsonlSource(rows(content, 'a.jsonl'), 'all')
    pairs = [plain[i] for i in range(3)]
    unpacked = Path(rows(content, 'a.jsonl'))
    path = rows(gzip.compress(unpacked.read_bytes()), 'a.jsonl.gz')
    with pytest.raises(UserError, match=r'a\.jsonl exists with and without \.gz'):
        JsonlSource(str(unpacked.parent), 'all')
    unpacked.unlink()
    packed = JsonlSource(str(unpacked.parent), 'all')
    assert [packed[i] for i in range(3)] == pairs
    assert packed.fingerprint == plain.fingerprint
    Path(path).write_bytes(gzip.compress(b'{"x": "new", "y": "b"}\n{"x": 1}\n'))
    assert JsonlSource(path, 'all', max_bad_share=1)[0].x == 'new'
    with pytest.raises(UserError, match=r'a\.jsonl\.gz:2'):
        JsonlSource(path, 'all')
    copies = {file: file.stat().st_mtime_ns for file in cache.glob('unpacked/*/a.jsonl')}
    JsonlSource(path, 'all', max_bad_share=1)
    assert len(copies) == 2
    assert copies == {file: file.stat().st_mtime_ns for file in cache.glob('unpacked/*/a*')}


def test_damaged_copy_of_a_gzipped_file_is_made_again(rows, cache, caplog):
    path = rows(gzip.compress(b''.join(GOOD + b'\n' for _ in range(20))), 'a.jsonl.gz')
    whole = JsonlSource(path, 'all')
    assert len(whole) == 20 and not caplog.records
    (copy,) = cache.glob('unpacked/*/a.jsonl')
    content = copy.read_bytes()
    flipped = content.replace(b'"a"', b'"c"', 1)
    for damaged in (content[: len(GOOD) * 10 + 10], b'', flipped):
        caplog.clear()
        copy.write_bytes(damaged)
        again = JsonlSource(path, 'all')
        assert len(again) == 20 and again[0] == whole[0] and copy.read_bytes() == content
        assert again.fingerprint == whole.fingerprint
        assert len(caplog.messages) == 1 and 'damaged: making it again' in caplog.text
    # Without its checksum, or moved to another file system, a copy is not damaged.
    caplog.clear()
    copy.write_bytes(content)
    JsonlSource(path, 'all')
    (copy.parent / 'checksums.json').unlink()
    JsonlSource(path, 'all')
    assert not caplog.records


def test_copy_that_two_programs_make_at_once_is_whole(rows, cache, caplog):
    path = rows(
        gzip.compress(b''.join(b'{"x": "%d", "y": "b"}\n' % i for i in range(2000))), 'a.gz'
    )
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: JsonlSource(path, 'all'), range(4)))
    found.append(JsonlSource(path, 'all'))
    assert [source[1999].x for source in found] == ['1999'] * 5
    assert len({source.fingerprint for source in found}) == 1 and not caplog.records


def test_verification_reads_the_file_and_its_copy(rows, cache, caplog):
    """Both copy and checksum are of other rows, as if the file had changed with an equal stamp."""
    path = rows(gzip.compress(GOOD * 1), 'a.jsonl.gz')
    JsonlSource(path, 'all')
    (copy,) = cache.glob('unpacked/*/a.jsonl')
    copy.write_bytes(b'{"x": "old", "y": "b"}')
    (copy.parent / 'checksums.json').unlink()
    write_checksums(copy.parent, {'a.jsonl': compute_checksum(copy)})
    assert JsonlSource(path, 'all')[0].x == 'old'
    assert JsonlSource(path, 'all', verify=True)[0].x == 'a'
    assert 'damaged' in caplog.text
    assert JsonlSource(path, 'all')[0].x == 'a'


def test_index_is_built_again_if_the_file_changes_under_the_same_name_size_and_time(rows):
    path = Path(rows([{'x': f'x {i}', 'y': 'y'} for i in range(10, 90)]))
    before = JsonlSource(str(path), 'train', holdout=0.5)
    stat = path.stat()
    replacement = path.with_name('other')
    replacement.write_bytes(path.read_bytes().replace(b'x 1', b'z 1'))
    os.utime(replacement, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    replacement.replace(path)  # as cp -p and rsync -t do
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    after = JsonlSource(str(path), 'train', holdout=0.5)
    assert after.fingerprint != before.fingerprint
    assert not {after[i].x for i in range(len(after))} <= {before[i].x for i in range(len(before))}


def test_index_without_an_array_is_built_again(rows, cache, caplog):
    path = rows(numbered(3))
    before = JsonlSource(path, 'all')
    (index,) = cache.glob('jsonl_*.npz')
    arrays = dict(np.load(index))
    for name in arrays:
        caplog.clear()
        np.savez(index, **{key: array for key, array in arrays.items() if key != name})
        assert JsonlSource(path, 'all').fingerprint == before.fingerprint
        assert f'has no {name}: building it again' in caplog.text


def test_file_on_a_slow_mount_is_read_from_a_copy(rows, cache, caplog, monkeypatch):
    path = Path(rows(numbered(100)))
    monkeypatch.setattr(local_copies, 'is_slower_than_cache', lambda found: found == path)
    source = JsonlSource(str(path), 'all')
    assert source.fingerprint == JsonlSource(str(path), 'all').fingerprint
    assert len([*cache.glob('unpacked/*/rows.jsonl')]) == 1
    path.rename(path.with_name('away'))  # no access reads the file
    assert [source[i].x for i in range(100)] == [f'x {i}' for i in range(100)]


def test_file_on_a_slow_mount_that_does_not_fit_is_read_where_it_is(
    rows, cache, caplog, monkeypatch
):
    path = Path(rows(numbered(100)))
    monkeypatch.setattr(local_copies, 'is_slower_than_cache', lambda found: found == path)
    monkeypatch.setattr('cpt_jax.storage.cache.get_free_bytes', lambda folder: 1000)
    assert len(JsonlSource(str(path), 'all')) == 100
    assert not [*cache.glob('unpacked/*/*')]
    assert 'do not fit into the cache' in caplog.text and 'CPT_JAX_CACHE' in caplog.text


def test_broken_gzip_file_leaves_no_copy(rows, cache):
    path = rows(gzip.compress(GOOD * 1000)[:-9], 'a.jsonl.gz')
    with pytest.raises(UserError, match=r'a\.jsonl\.gz: a broken gzip file'):
        JsonlSource(path, 'all')
    assert not [*cache.glob('unpacked/*/*')]
    (cache / 'unpacked').rename(cache / 'elsewhere')
    (cache / 'unpacked').write_text('in the way')
    with pytest.raises(
        UserError, match=r'a\.jsonl\.gz: cannot be decompressed into .*CPT_JAX_CACHE'
    ):
        JsonlSource(path, 'all')


def test_field_names_are_configurable(rows):
    path = rows([{'doc': 'a', 'code': 'b', 'hard': ['c'], 'name': 'n', 'x': 1, 'negatives': 2}])
    assert JsonlSource(path, 'all', x='doc', y='code', negatives='hard', id='name')[0] == Pair(
        'a', 'b', ('c',), 'n'
    )
    assert JsonlSource(path, 'all', x='doc', y='code', negatives='', id='')[0] == Pair(
        'a', 'b', (), 'rows.jsonl:1'
    )


@pytest.mark.parametrize(
    'content',
    [
        GOOD + b'\n\n  \t\n' + GOOD,  # blank lines, no newline at the end
        GOOD + b'\r\n\r\n' + GOOD + b'\r\n',
        b'\xef\xbb\xbf' + GOOD + b'\n' + GOOD + b'\n',
        b'\xef\xbb\xbf  ' + GOOD + b'  \n \t' + GOOD,
    ],
    ids=['blank', 'crlf', 'bom', 'spaces'],
)
def test_blank_lines_line_ends_bom_and_spaces_are_ignored(rows, content):
    source = JsonlSource(rows(content), 'all', max_bad_share=0)
    assert [source[i][:2] for i in range(len(source))] == [('a', 'b')] * 2
    assert source.problems.rows == 2
    assert source.problems.bad == 0


BAD = {
    'not UTF-8': b'{"x": "caf\xe9", "y": "b"}',
    'not JSON': b'{"x": "a", "y": "b"',
    'not a JSON object': b'["a", "b"]',
    "no field 'y'": b'{"x": "a", "z": "b"}',
    "'x' is not text": b'{"x": 5, "y": "b"}',
    "'y' is not text": b'{"x": "a", "y": null}',
    "'y' is empty": b'{"x": "a", "y": " \\n"}',
    "'x' is longer than 50 characters": b'{"x": "' + b'a' * 51 + b'", "y": "b"}',
    "'y' contains a lone surrogate": b'{"x": "a", "y": "\\ud83d"}',
    "'negatives' is not a list of texts": b'{"x": "a", "y": "b", "negatives": "c"}',
    "'negatives' is not text": b'{"x": "a", "y": "b", "negatives": ["c", 1]}',
    "'y' has no text": b'{"x": "a", "y": ["", null]}',
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_row_is_skipped_counted_and_reported_with_its_line(rows, kind):
    path = rows(b'\n'.join([GOOD, b'', BAD[kind], GOOD]))
    source = JsonlSource(path, 'all', max_chars=50, max_bad_share=0.5)
    assert [source[i].id for i in range(len(source))] == ['rows.jsonl:1', 'rows.jsonl:4']
    assert source.summary() == (
        f'jsonl/all: 2 pairs of 3 rows in 1 files; 1 of 3 rows cannot be used: 1 {kind} (first: '
        f'{path}:3)'
    )
    with pytest.raises(UserError, match=rf'^{path}:3: {kind}') as error:
        JsonlSource(path, 'all', max_chars=50)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'line',
    [b'[' * 100_000, b'{"x": ' + b'9' * 5000 + b'}', b'\xff\xfe{\x00'],
    ids=['deep', 'digits', 'utf-16'],
)
def test_malformed_lines_are_bad_rows(rows, line):
    source = JsonlSource(rows(line + b'\n' + GOOD), 'all', max_bad_share=0.5)
    assert len(source) == 1
    assert source.problems.bad == 1


def test_message_includes_the_error_of_the_json_parser(rows):
    path = rows(GOOD + b'\n{"x": a}\n')
    with pytest.raises(
        UserError,
        match=rf'^{path}:2: not JSON: Expecting value: line 1 column 7 \(char 6\); 1 of 2 rows',
    ):
        JsonlSource(path, 'train')


def test_a_csv_file_is_told_its_kind(tmp_path):
    path = tmp_path / 'pairs.csv'
    path.write_text('x,y\na,b\n')
    with pytest.raises(UserError, match='not JSON: Expecting .*; CSV files need kind=csv;'):
        JsonlSource(str(path), 'train')


def test_max_bad_share_limits_the_fraction_of_bad_rows(rows):
    path = rows(b'\n'.join([GOOD] * 999 + [b'x']))
    assert len(JsonlSource(path, 'all', max_bad_share=0.001)) == 999
    with pytest.raises(UserError, match='1 of 1,000 rows'):
        JsonlSource(path, 'all', max_bad_share=0.0009)


def test_files_are_read_in_order_of_their_names(rows, tmp_path):
    rows(numbered(3), 'b.jsonl')
    rows([{'x': 'first', 'y': 'y'}], 'a.jsonl')
    rows(b'no rows at all', 'c.txt')
    whole = JsonlSource(str(tmp_path / 'data'), 'all')
    assert [whole[i].id for i in range(len(whole))] == [
        'a.jsonl:1',
        'b.jsonl:1',
        'b.jsonl:2',
        'b.jsonl:3',
    ]
    assert len(JsonlSource(str(tmp_path / 'data' / 'b*'), 'all')) == 3


def test_rows_of_a_group_are_in_one_split(rows):
    mixed = [
        {'x': f'x {i}', 'y': 'y', **({'file': f'f{i % 40}'} if i % 3 else {'path': f'p{i % 40}'})}
        for i in range(2000)
    ]
    path = rows(mixed)
    splits = {}
    for split in ('train', 'heldout'):
        source = JsonlSource(path, split, group=('file', 'path'), id='file', holdout=0.3)
        for i in range(len(source)):
            row = mixed[int(source[i].x.split()[1])]
            splits.setdefault(row.get('file') or row['path'], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert 10 < sum(found == {'heldout'} for found in splits.values()) < 40  # of 80 groups
    assert len(JsonlSource(path, 'train', group='file', holdout=0.3)) < 2000


def test_without_group_rows_with_equal_x_are_in_one_split(rows):
    path = rows([{'x': f'x {i % 100}', 'y': f'y {i}'} for i in range(1000)])
    train, heldout = (JsonlSource(path, split, holdout=0.2) for split in ('train', 'heldout'))
    assert len(train) + len(heldout) == 1000
    assert len(heldout) > 50
    assert not {train[i].x for i in range(len(train))} & {heldout[i].x for i in range(len(heldout))}


def test_x_with_the_same_words_are_in_one_split(rows):
    """Runs that began before data.equal_texts existed keep their split by characters."""
    xs = [x for i in range(500) for x in (f'Text {i}', f'text\u00a0{i} ')]
    path = rows([{'x': x, 'y': 'y'} for x in xs])

    def read_split(split, rule):
        source = JsonlSource(path, split, holdout=0.2, equal_texts=rule)
        return {normalize_text(source[i].x) for i in range(len(source))}, source.fingerprint

    (train, fingerprint), (heldout, _) = (
        read_split(split, NORMALIZED) for split in ('train', 'heldout')
    )
    assert len(train) + len(heldout) == 500 and len(heldout) > 50
    (train, old_fingerprint), (heldout, _) = (
        read_split(split, STRIPPED) for split in ('train', 'heldout')
    )
    assert len(train & heldout) > 50
    assert fingerprint != old_fingerprint


def test_fingerprint_depends_on_content_and_arguments(rows):
    path = rows(numbered(5))
    first = JsonlSource(path, 'all').fingerprint
    os.utime(path, ns=(1, 1))
    assert JsonlSource(path, 'all').fingerprint == first
    others = {
        JsonlSource(path, 'train').fingerprint,
        JsonlSource(path, 'all', holdout=0.1).fingerprint,
    }
    others |= {JsonlSource(path, 'all', x='y').fingerprint}
    rows(numbered(4) + [{'x': 'x 4', 'y': 'y 5'}])
    others |= {JsonlSource(path, 'all').fingerprint}
    assert len(others | {first}) == 5


def test_second_use_reads_the_cached_index(rows, monkeypatch):
    path = rows(b'\n'.join([GOOD, b'x', GOOD]))
    first = JsonlSource(path, 'all', max_bad_share=1)
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, '_index_rows', None)  # a call would fail
        second = JsonlSource(path, 'all', max_bad_share=1)
        with pytest.raises(UserError, match='rows.jsonl:2: not JSON'):
            JsonlSource(path, 'all')
    assert second[1] == first[1]
    assert second.summary() == first.summary()
    assert second.fingerprint == first.fingerprint


def test_changed_file_is_indexed_again(rows):
    path = rows(numbered(5))
    assert len(JsonlSource(path, 'all')) == 5
    rows(numbered(6))
    assert len(JsonlSource(path, 'all')) == 6


def test_file_that_changes_while_the_program_runs_is_an_error(rows):
    path = rows(numbered(5))
    source = JsonlSource(path, 'all')
    rows(b'{"x": "another", "y": "file"}\n')
    with pytest.raises(UserError, match=rf'^{path}:5: .*the file has changed since'):
        source[4]


def test_rows_can_be_read_from_several_threads(rows):
    source = JsonlSource(rows(numbered(500)), 'all')
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, [i % 500 for i in range(4000)]))
    assert [pair.y for pair in found] == [f'y {i % 500}' for i in range(4000)]


@pytest.mark.parametrize('content, split', [(b'', 'all'), (b'\n\n', 'train'), (GOOD, 'heldout')])
def test_source_without_pairs_is_refused(rows, content, split):
    with pytest.raises(UserError, match='^no pairs in .*rows.jsonl for split'):
        JsonlSource(rows(content), split, holdout=1e-9)


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"^path: '{tmp_path}/none' is not a file, not a folder"):
        JsonlSource(f'{tmp_path}/none', 'all')


def test_codesearchnet_rows_lose_their_docstrings(rows):
    python = {
        'x': 'Adds one.\n\nThat is all.',
        'y': 'def f(x):\n    """Adds one."""\n    return x + 1',
    }
    path = rows([python | {'language': 'python'}, python, python | {'language': 'go'}])
    source = JsonlSource(path, 'all', codesearchnet=True)
    assert [pair.x for pair in (source[0], source[1], source[2])] == ['Adds one.'] * 3
    assert source[0].y == source[1].y == 'def f(x):\n    return x + 1'
    assert source[2].y == python['y']
    plain = JsonlSource(path, 'all')
    assert plain[0].y == python['y']
    assert plain.fingerprint != source.fingerprint


def test_null_or_empty_group_is_ignored(rows):
    path = rows([row | {'file': None if i % 2 else ''} for i, row in enumerate(numbered(400))])
    assert 80 < len(JsonlSource(path, 'heldout', group='file', holdout=0.3)) < 160


@pytest.mark.parametrize('holdout', [-0.1, 1.5])
def test_holdout_must_be_a_fraction(rows, holdout):
    with pytest.raises(UserError, match='must be a fraction from 0 to 1'):
        JsonlSource(rows(numbered(9)), 'train', holdout=holdout)


def test_several_positives_make_pairs_of_which_a_batch_has_one(rows):
    """FlagEmbedding trains on one of `pos` per row, chosen anew each time."""
    path = rows(
        [
            {'query': 'a', 'pos': ['b', '', 'c'], 'neg': ['n', None, 'm']},
            {'query': 'd', 'pos': ['e'], 'neg': []},
        ]
    )
    source = JsonlSource(path, 'all')
    assert [source[i]._replace(positives=()) for i in range(3)] == [
        Pair('a', 'b', ('n', 'm'), 'rows.jsonl:1#1'),
        Pair('a', 'c', ('n', 'm'), 'rows.jsonl:1#2'),
        Pair('d', 'e', (), 'rows.jsonl:2'),
    ]
    assert source[0].positives == source[1].positives and len(source[0].positives) == 2
    assert source.documents.tolist() == [0, 2, 3]
    batches = make_batches({'s': source}, {'s': 1.0}, seed=0, batch_pairs=2)
    assert [set(batches[step].pairs) for step in range(2)] in ([{0, 2}, {1, 2}], [{1, 2}, {0, 2}])


def test_rules_of_earlier_versions_are_kept(rows):
    """Rows that earlier versions refused stay out of the data of a run that began with them, and
    the fingerprint of its data stays as it was.
    """
    path = rows(
        [{'x': 'a', 'y': 'b', 'negatives': ['']}, {'x': 'a', 'y': ['b']}, {'x': 'c', 'y': 'd'}]
    )
    source = JsonlSource(path, 'all', max_bad_share=1, rules=1, equal_texts=STRIPPED)
    assert [source[i].x for i in range(len(source))] == ['c']
    # Computed with version 52bcc22.
    assert source.fingerprint == '80ba6560b1386dd90e122a04d5002c0e'
    latest = JsonlSource(path, 'all')
    assert len(latest) == 3
    assert latest.fingerprint != source.fingerprint
    with pytest.raises(UserError, match='rules=3: leave it out'):
        JsonlSource(path, 'all', rules=3)


def test_few_distinct_answers_give_a_warning(rows):
    path = rows([{'x': f'x {i}', 'y': f'y {i % 5}'} for i in range(100)])
    assert (
        'WARNING: only 5 distinct y among 100 pairs: 19% of' in JsonlSource(path, 'all').summary()
    )
    assert 'WARNING' not in JsonlSource(rows(numbered(100)), 'all').summary()


def test_scores_belong_to_y_and_the_hard_negatives(rows):
    path = rows(
        [
            {'x': 'a', 'y': 'b', 'negatives': ['n', ' ', None, 'm'], 'scores': [4, 3, 2, 1, 0.5]},
            {'x': 'c', 'y': ['d', 'e'], 'negatives': ['n'], 'scores': [4, 3, -1e3]},
            {'x': 'f', 'y': 'g', 'scores': [0]},
        ]
    )
    source = JsonlSource(path, 'all', scores='scores')
    assert [source[i].scores for i in range(4)] == [(4, 3, 0.5), (4, -1e3), (3, -1e3), (0,)]
    assert JsonlSource(path, 'all')[0].scores == ()


def test_scores_of_flag_embedding_are_in_two_fields(rows):
    row = {'query': 'a', 'pos': ['b', 'c'], 'neg': ['n'], 'pos_scores': [3, 2], 'neg_scores': [1]}
    source = JsonlSource(rows([row]), 'all', scores='pos_scores, neg_scores')
    assert [source[i].scores for i in range(2)] == [(3, 1), (2, 1)]


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        ({}, "rows.jsonl:1: no field 'scores': it has 'x', 'y'"),
        ({'scores': [1, 2]}, "rows.jsonl:1: 'scores': not as many scores as texts: 2 scores of 1"),
        ({'scores': 'high'}, "rows.jsonl:1: 'scores' is not a number: 'high'"),
        ({'scores': [True]}, "rows.jsonl:1: 'scores' is not a number: True"),
        ({'scores': [float('nan')]}, "rows.jsonl:1: 'scores' is not a number: nan"),
    ],
    ids=str,
)
def test_row_without_usable_scores_is_bad(rows, row, expected):
    with pytest.raises(UserError, match=f'^.*{re.escape(expected)}'):
        JsonlSource(rows([{'x': 'a', 'y': 'b', **row}]), 'all', scores='scores')


def test_pairs_have_grades(rows):
    source = JsonlSource(rows(numbered(2, similarity=2.5)), 'all', score='similarity')
    assert [source[i].scores for i in range(2)] == [(2.5,), (2.5,)]
    with pytest.raises(UserError, match="'similarity' is not a number: '2'"):
        JsonlSource(rows(numbered(2, similarity='2')), 'all', score='similarity')
    with pytest.raises(UserError, match='scores=a and score=b: a source has scores of the texts'):
        JsonlSource(rows(numbered(2)), 'all', scores='a', score='b')


def test_scores_change_the_fingerprint_only_if_they_are_read(rows):
    """The repr is part of the fingerprint, and earlier runs must keep theirs."""
    path = rows(numbered(2, scores=[1.0]))
    assert 'score' not in repr(JsonlSource(path, 'all')._fields)
    assert "scores=('scores',)" in repr(JsonlSource(path, 'all', scores='scores')._fields)
