import json

import numpy as np
import pytest

from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.prepare import plan, stages
from cpt_jax.prepare.consistency import _get_bins, _name_bin
from cpt_jax.prepare.run import prepare
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import make_config, write_texts

PAIRS = 60


def embed_numbers(texts, side):
    """Returns the vector of the number in each text, on a circle."""
    angles = np.array([int(text.split()[-1]) for text in texts]) * (2 * np.pi / PAIRS)
    return np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config for pairs of equal numbers, of which a fifth were shuffled."""
    monkeypatch.setattr(stages, 'load_model', lambda reference: embed_numbers)
    monkeypatch.setattr(plan, 'digest_model', lambda reference: 'digest')
    rows = [{'id': i, 'x': f'x {i}', 'y': f'y {(i + 30) % PAIRS if i % 5 == 0 else i}'}
            for i in range(PAIRS)]  # fmt: skip
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    section = {'reader': 'jsonl', 'path': str(tmp_path / 'a.jsonl'), 'text': 'x'}
    config = make_config(a=section | {'pairs': 'fields'})
    config['output'] |= {'holdout': 0.2}
    config['consistency'] = {'model': 'some/model', 'top_k': 2, 'sample': 1000}
    return config


def get_ids(output):
    source = TfdsSource(path=str(output), split='all')
    assert source.documents[-1] == len(source)
    return sorted(int(source[i].x.split()[1]) for i in range(len(source)))


def test_pairs_whose_y_is_far_from_x_are_dropped(config, tmp_path):
    summary = prepare(config, tmp_path / 'output')
    assert get_ids(tmp_path / 'output') == [i for i in range(PAIRS) if i % 5]
    assert summary['total']['dropped']['inconsistent'] == PAIRS // 5
    ranks = summary['consistency']['ranks']
    assert ranks['1'] == PAIRS * 4 // 5 and sum(ranks.values()) == PAIRS
    assert sum(summary['pairs'].values()) == PAIRS * 4 // 5
    card = (tmp_path / 'output/card.md').read_text()
    assert '| 1 | 48 |' in card and 'some/model ranks its y among the 2 best' in card


def test_a_stopped_filter_goes_on(config, tmp_path, monkeypatch):
    whole = prepare(config, tmp_path / 'whole')
    monkeypatch.setattr(stages, 'filter_shard', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config, tmp_path / 'output')
    monkeypatch.undo()
    monkeypatch.setattr(stages, 'load_model', lambda reference: embed_numbers)
    monkeypatch.setattr(plan, 'digest_model', lambda reference: 'digest')
    assert prepare(config, tmp_path / 'output')['contents'] == whole['contents']


def test_ranks_are_counted_in_powers_of_two():
    names = [_name_bin(bin_) for bin_ in _get_bins(np.array([1, 2, 3, 4, 5, 8, 9])).tolist()]
    assert names == ['1', '2', '3-4', '3-4', '5-8', '5-8', '9-16']


def test_mistakes_are_named(tmp_path):
    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 2))})
    config['consistency'] = {'model': 'm', 'top_k': 0}
    with pytest.raises(UserError, match='consistency.top_k=0: must be 1 or more'):
        prepare(config, tmp_path / 'output')
