"""The metadata of a checkpoint, also of older runs that stored less."""

import pytest

from cpt_jax.runs.provenance import Base, Provenance

STORED = {
    'config': {
        'objective': 'lm',
        'init_from': 'runs/x',
        'prompt': {'template': '{text}!', 'text_tokens': 3, 'begin_token': 'always'},
        'lora': {'rank': 2, 'base': 'nf4'},
        'tokenizer': {'closing': 'shared', 'delimiters': 'none'},
        'model': {'pooling': 'mean'},
        'data': {'equal_texts': 'normalized'},
        'loss': {'train_temperature': False},
        'optimizer': {'decay': 'linear'},
    },
    'tokenizer': 'f1',
    'sources': {'pairs': 'f2'},
    'code': '0.1.0',
    'inherits': True,
    'begin': [1],
    'pretrained': {'model_type': 'llama'},
    'base': {'path': 'llama', 'fingerprint': 'f3'},
    'own_tokenizer': {'prompts': {'x': 'a', 'y': 'b'}},
}


def test_provenance_is_read_back_from_json():
    provenance = Provenance.from_json(STORED)
    assert provenance.to_json() == STORED
    assert provenance.base == Base('llama', 'f3')
    assert (provenance.objective, provenance.template) == ('lm', '{text}!')
    assert provenance.closing == 'shared' and provenance.has_adapters


def test_run_without_a_base_stores_no_base():
    stored = {key: value for key, value in STORED.items() if key not in ('base', 'own_tokenizer')}
    assert Provenance.from_json(stored).to_json() == stored


def test_missing_values_of_an_older_run_get_its_behaviour():
    """The first runs had no choice of objective, template, LoRA or delimiters."""
    provenance = Provenance.from_json({'config': {'tokenizer': {}, 'prompt': None}})
    assert (provenance.objective, provenance.template) == ('contrastive', '')
    assert provenance.closing == 'own' and not provenance.has_adapters
    assert provenance.inherits is None and provenance.begin is None
    assert provenance.pretrained is None and provenance.base is None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'config': 3}, 'config=3: must be the sections of a config'),
        ({'config': {'data': []}}, 'must be the sections of a config'),
        ({'config': {'data': {'sources': []}}}, 'must be the sections of a config'),
        ({'sources': {'pairs': 3}}, 'must be an object, each value a text'),
        ({'base': {'path': 'x'}}, 'must be an object of path and fingerprint'),
        ({'begin': ['1']}, 'must be a list, each item an integer'),
    ],
)
def test_values_of_another_type_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Provenance.from_json(STORED | change)


def test_missing_config_is_refused():
    with pytest.raises(ValueError, match="no 'config'"):
        Provenance.from_json({'code': '0.1.0'})
