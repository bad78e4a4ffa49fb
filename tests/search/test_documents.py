"""Documents that are read block by block."""

import numpy as np
import pytest
from etils import epath

from cpt_jax.runtime.errors import UserError
from cpt_jax.search import documents
from cpt_jax.search.documents import IndexedDocuments, Row

NAMES = ['7', '007', 'é', 'z', '\uffff', '\U0001f600', '']
PATH = epath.Path('made.jsonl')


def made(names=NAMES):
    return IndexedDocuments(
        PATH,
        lambda: (
            Row(f'made.jsonl:{i}', name, f'text of {name}') for i, name in enumerate(names, 1)
        ),
    )


def test_positions_are_in_descending_order_of_bytes():
    found = made()
    assert found.names == sorted(NAMES, key=str.encode, reverse=True)
    assert found.in_order() == [f'text of {name}' for name in found.names]
    assert [found.names[position] for position, _ in found.texts()] == NAMES
    assert found.positions_of(['7', 'gone', '']) == {
        '7': found.names.index('7'),
        '': len(NAMES) - 1,
    }
    assert (
        found.texts_at([0, 3]) == {i: f'text of {found.names[i]}' for i in (0, 3)}
        and found.texts_at([]) == {}
    )


def test_blocks_are_in_the_order_of_the_file(monkeypatch):
    monkeypatch.setattr(documents, 'AT_ONCE', 3)
    found, asked = made(), []

    def embed(texts, side):
        asked.append((list(texts), side))
        return np.arange(len(texts), dtype=np.float32)[:, None]

    blocks = [*found.embedded(embed)]
    assert [len(texts) for texts, _ in asked] == [3, 3, 1] and {side for _, side in asked} == {'y'}
    assert [found.names[i] for positions, _ in blocks for i in positions] == NAMES
    assert [text for texts, _ in asked for text in texts] == [f'text of {name}' for name in NAMES]


def test_what_cannot_be_used_is_told():
    with pytest.raises(UserError, match=r"made.jsonl:3: the id 'a' stands on an earlier line"):
        made(['a', 'b', 'a', 'b'])
    with pytest.raises(UserError, match=r'made.jsonl:2: holds half a character'):
        made(['a', '\ud800'])


@pytest.mark.parametrize('later', [['a', 'c', 'b'], ['a', 'b']])
def test_a_file_that_changes_meanwhile_is_told(later):
    names = iter([['a', 'b', 'c'], later])
    found = IndexedDocuments(PATH, lambda: (Row('', name, name) for name in next(names)))
    with pytest.raises(UserError, match='made.jsonl: was changed while it was read'):
        list(found.texts())
