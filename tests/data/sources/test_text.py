import re

import numpy as np
import pytest

from cpt_jax.data.sources import text as text_module
from cpt_jax.data.sources.text import Cut, TextSource
from cpt_jax.runtime.errors import UserError


class WordTokenizer:
    """Counts a word as one token, and a long word as one token per 8 characters."""

    fingerprint = 'words'

    def count(self, texts):
        return [sum(-(-len(word) // 8) for word in text.split()) for text in texts]


WORDS = WordTokenizer()


def prose(name, sentences, length=7):
    """Returns sentences of `length` words, one per line, in paragraphs of five; the first word of
    sentence i is the name followed by i.
    """
    lines = [' '.join([f'{name}{i}', *['word'] * (length - 2), 'end.']) for i in range(sentences)]
    return '\n\n'.join('\n'.join(lines[i : i + 5]) for i in range(0, sentences, 5))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'docs'
    root.mkdir()

    def write(**files):
        for name, content in files.items():
            path = root / f'{name}.txt'
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(root)

    return write


def source(path, split='all', piece_tokens=20, min_tokens=5, **more):
    return TextSource(path, split, WORDS, piece_tokens=piece_tokens, min_tokens=min_tokens, **more)


def pairs(source):
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize('sentences, length', [(40, 7), (40, 2), (3, 90), (1, 500), (200, 13)])
def test_pieces_keep_every_word_in_order_and_are_bounded(sentences, length):
    document = prose('s', sentences, length)
    pieces = Cut(20, 5).split(document, WORDS)
    lengths = WORDS.count(pieces)
    assert max(lengths) <= 20
    assert min(lengths) >= 5
    words = document.split()
    kept = ' '.join(pieces).split()
    assert kept == words[: len(kept)]
    assert len(words) - len(kept) < 5  # a last piece with fewer than min_tokens is dropped


def test_pieces_end_with_sentences_and_keep_paragraphs():
    document = (
        'One two three\nfour five. Six "seven?" Eight nine\nten.\n\n\nEleven twelve!\n \nThirteen.'
    )
    assert Cut(12, 2).split(document, WORDS) == [
        'One two three four five. Six "seven?" Eight nine ten.',
        'Eleven twelve!\nThirteen.',
    ]
    assert Cut(100, 1).split(document, WORDS) == [
        'One two three four five. Six "seven?" Eight nine ten.\nEleven twelve!\nThirteen.'
    ]


def test_text_without_white_space_is_split_too():
    pieces = Cut(20, 5).split('a' * 1000 + ' ' + 'b' * 1000, WORDS)
    assert ''.join(pieces).replace(' ', '').replace('\n', '') == 'a' * 1000 + 'b' * 1000
    assert max(WORDS.count(pieces)) <= 20


@pytest.mark.parametrize('document', ['', ' \n\n ', 'Too short.'])
def test_short_documents_give_no_piece(document):
    assert Cut(20, 5).split(document, WORDS) == []


def test_neighboring_pieces_are_paired(folder):
    path = folder(a=prose('a', 9), b=prose('b', 30))
    whole = source(path)
    for name, start, end in (
        ('a', 0, whole.documents[1]),
        ('b', whole.documents[1], whole.documents[2]),
    ):
        document = [whole[i] for i in range(start, end)]
        for this, following in zip(document, document[1:], strict=False):
            assert this.y == following.x
        text = ' '.join([document[0].x, *(pair.y for pair in document)]).split()
        assert text == prose(name, 30).split()[: len(text)]
        assert document[1].id == f'{name}.txt#0:1'
    assert whole.documents.dtype == np.int64
    assert whole.documents.tolist() == [0, whole.documents[1], len(whole)]
    assert 0 < whole.documents[1] < 9


@pytest.mark.parametrize('index', [-1, 10_000])
def test_invalid_index_raises_index_error(folder, index):
    with pytest.raises(IndexError):
        source(folder(a=prose('a', 30)))[index]


def test_separator_line_begins_a_document(folder):
    book = (
        'Preface\n'
        + prose('p', 12)
        + '\n\nCHAPTER 1\n\n'
        + prose('a', 12)
        + '\nCHAPTER 2\n'
        + prose('b', 12)
    )
    path = folder(book=book)
    assert len(source(path).documents) == 2
    chapters = source(path, separator='^CHAPTER')
    starts = [chapters[i] for i in chapters.documents[:-1]]
    assert [pair.x.split()[:2] for pair in starts] == [
        ['Preface', 'p0'],
        ['CHAPTER', '1'],
        ['CHAPTER', '2'],
    ]
    assert [pair.id for pair in starts] == ['book.txt#0:0', 'book.txt#1:0', 'book.txt#2:0']
    assert all(
        len(set(re.findall(r'\b[pab](?=\d)', pair.x + ' ' + pair.y))) == 1
        for pair in pairs(chapters)
    )


def test_whole_documents_are_held_out(folder):
    path = folder(**{f'd{i}': prose(f'd{i}x', 12) for i in range(60)})
    splits = [source(path, split, holdout=0.3) for split in ('train', 'heldout', 'all')]
    files = [{pair.id.split('#')[0] for pair in pairs(split)} for split in splits]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == len(files[2]) == 60
    assert 5 < len(files[1]) < 30
    assert sum(map(len, splits[:2])) == len(splits[2])
    assert len({split.fingerprint for split in splits}) == 3
    assert {pair[:2] for pair in pairs(splits[0])} < {pair[:2] for pair in pairs(splits[2])}


def test_split_does_not_depend_on_the_path_of_the_folder(folder, tmp_path):
    path = folder(**{f'd{i}': prose(f'd{i}x', 12) for i in range(20)})
    before = source(path, 'heldout', holdout=0.3)
    (tmp_path / 'docs').rename(tmp_path / 'moved')
    after = source(str(tmp_path / 'moved'), 'heldout', holdout=0.3)
    assert pairs(before) == pairs(after)
    assert before.fingerprint == after.fingerprint


def test_repeated_short_and_latin_documents_are_counted(folder):
    same = prose('a', 12)
    path = folder(
        a=same,
        b=same.replace('\n', '  \r\n'),
        c='Short.',
        d=prose('é', 12).encode('latin-1'),
        e=b'',
        f=b'\xef\xbb\xbf' + b'B ' * 99,
    )
    whole = source(path)
    assert whole.summary() == (
        f'text/all: {len(whole)} pairs of 3 documents; 5 documents in 6 files, 1 repeated, 1 too '
        f'short; '
        'not UTF-8 and read as Latin-1: d.txt'
    )
    assert whole[int(whole.documents[1])].x.startswith('é0 word')
    assert whole[int(whole.documents[2])].x.startswith('B B')


def test_min_pieces_of_1_keeps_documents_of_one_piece(folder):
    path = folder(long=prose('a', 12), short='One piece of some words.', empty='.')
    with_short, without_short = (
        list(source(path, min_pieces=least, min_tokens=2).get_pieces()) for least in (1, 2)
    )
    assert set(with_short) - set(without_short) == {'One piece of some words.'}
    assert len(with_short) == len(without_short) + 1


def test_second_use_reads_the_cache(folder, monkeypatch):
    path = folder(a=prose('a', 30))
    first = source(path)
    with monkeypatch.context() as patch:
        patch.setattr(text_module, 'cut_into_shards', None)  # a call would fail
        second = source(path)
    assert pairs(second) == pairs(first)
    assert second.fingerprint == first.fingerprint
    assert second.summary() == first.summary()


def test_other_settings_and_tokenizers_give_other_pieces(folder):
    path = folder(a=prose('a', 30))

    class HalfWordTokenizer(WordTokenizer):
        fingerprint = 'halves'

        def count(self, texts):
            return [2 * count for count in super().count(texts)]

    others = [
        source(path),
        source(path, piece_tokens=30),
        source(path, separator='a5 '),
        TextSource(path, 'all', HalfWordTokenizer(), 20, 5),
    ]
    assert len({other.fingerprint for other in others}) == 4
    assert len(others[3]) > len(others[0]) > len(others[1])


@pytest.mark.parametrize(
    'change, message',
    [
        ({'path': '/nowhere'}, "^path: '/nowhere' is not a file, not a folder with "),
        ({'separator': '('}, r"^separator: '\(' is not a valid regular expression"),
        ({'piece_tokens': 9}, '^piece_tokens is 9 and must be at least twice min_tokens, 5'),
        ({'min_tokens': 0}, '^piece_tokens is 20 and must'),
        ({'piece_tokens': 5000, 'min_tokens': 2000}, "^no pairs in .*docs for split 'all'"),
    ],
)
def test_invalid_argument_is_refused(folder, change, message):
    with pytest.raises(UserError, match=message):
        source(**{'path': folder(a=prose('a', 30)), **change})


def test_file_with_zero_bytes_is_refused(folder):
    path = folder(a=b'some\0thing')
    with pytest.raises(UserError, match=r'a\.txt: contains zero bytes'):
        TextSource(path, 'train', WORDS)
