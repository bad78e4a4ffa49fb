"""Documents of a collection: positions, blocks and errors."""

import numpy as np
import pytest
from etils import epath

from cpt_jax.runtime.errors import UserError
from cpt_jax.search import documents
from cpt_jax.search.documents import IndexedDocuments, Row

NAMES = ['7', '007', 'é', 'z', '\uffff', '\U0001f600', '']
PATH = epath.Path('made.jsonl')


def make_documents(names=NAMES):
    return IndexedDocuments(
        PATH,
        lambda: (
            Row(f'made.jsonl:{i}', name, f'text of {name}') for i, name in enumerate(names, 1)
        ),
    )


def test_positions_are_in_descending_byte_order_of_ids():
    found = make_documents()
    assert found.names == sorted(NAMES, key=str.encode, reverse=True)
    assert found.load_all_texts() == [f'text of {name}' for name in found.names]
    assert [found.names[position] for position, _ in found.iterate_texts()] == NAMES
    assert found.find_positions(['7', 'gone', '']) == {
        '7': found.names.index('7'),
        '': len(NAMES) - 1,
    }
    assert found.load_texts_at([0, 3]) == {i: f'text of {found.names[i]}' for i in (0, 3)}
    assert found.load_texts_at([]) == {}


def test_blocks_are_in_file_order(monkeypatch):
    monkeypatch.setattr(documents, 'TEXTS_PER_BLOCK', 3)
    found = make_documents()
    calls = []

    def embed(texts, side):
        calls.append((list(texts), side))
        return np.arange(len(texts), dtype=np.float32)[:, None]

    blocks = [*found.embed_blocks(embed)]
    assert [len(texts) for texts, _ in calls] == [3, 3, 1] and {side for _, side in calls} == {'y'}
    assert [found.names[i] for positions, _ in blocks for i in positions] == NAMES
    assert [text for texts, _ in calls for text in texts] == [f'text of {name}' for name in NAMES]


def test_duplicate_ids_and_lone_surrogates_are_errors():
    with pytest.raises(UserError, match=r"made.jsonl:3: the id 'a' is already on an earlier line"):
        make_documents(['a', 'b', 'a', 'b'])
    with pytest.raises(UserError, match=r'made.jsonl:2: contains a lone surrogate'):
        make_documents(['a', '\ud800'])


@pytest.mark.parametrize('later', [['a', 'c', 'b'], ['a', 'b']])
def test_file_that_changes_while_it_is_read_is_an_error(later):
    names = iter([['a', 'b', 'c'], later])
    found = IndexedDocuments(PATH, lambda: (Row('', name, name) for name in next(names)))
    with pytest.raises(UserError, match='made.jsonl: was changed while it was read'):
        list(found.iterate_texts())
