"""The loss of each source, and the errors for losses that its data does not fit."""

import json
import math

import pytest

from cpt_jax.loss.infonce import InfoNCE
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.training.contrastive import Contrastive
from cpt_jax.training.sections import Data
from cpt_jax.training.setup import _check_vectors, set_up
from cpt_jax.training.source_losses import SourceLoss, read_source_losses

UNUSED_GUIDE = {
    'infonce': 0.0,
    'terms': (('uniformity', 1.0),),
    'mask_margin': 0.1,
    'guide': 'vectors',
}


UNUSED_DIMENSIONS = {'infonce': 0.0, 'terms': (('uniformity', 1.0),), 'dimensions': (4, 8)}


def make(section: dict, loss: dict | None = None, negatives: int = 2) -> Contrastive:
    data = Data({'a': section, 'b': {}}, 32, 32, 32, negatives=negatives)
    return Contrastive.from_config({'loss': loss or {}}, data)


def read(section: dict, loss: dict | None = None, negatives: int = 2) -> SourceLoss:
    return make(section, loss, negatives).source_losses.losses['a']


def test_source_has_the_settings_of_the_loss_section_or_its_own():
    shared = {'symmetric': False, 'infonce': 0.5, 'terms': (('uniformity', 1),)}
    assert read({}, shared) == SourceLoss(0.5, (1.0, 0.0), True, None, {'uniformity': 1.0})
    own = {
        'infonce': 0.0,
        'direction': 'both',
        'temperature': 0.02,
        'scores': 'scores',
        'terms': [['kl', 2]],
    }
    assert read(own, shared) == SourceLoss(0.0, (0.5, 0.5), True, 0.02, {'kl': 2.0})
    repeated = (('uniformity', 1), ('uniformity', 0.5))
    assert read({}, {'terms': repeated}).terms == read({'terms': repeated}).terms
    assert read({'terms': repeated}).terms == {'uniformity': 1.5}
    assert InfoNCE(terms=repeated).default_settings.terms == {'uniformity': 1.5}
    # A y has no negatives, so only x is compared.
    assert read({'in_batch': False}) == SourceLoss(1.0, (1.0, 0.0), False, None, {})


def test_losses_are_described():
    terms = (('uniformity', 0.5),)
    sections = {'a': {'in_batch': False, 'temperature': 0.1}, 'b': {'terms': terms}}
    losses = read_source_losses(InfoNCE(), Data(sections, 32, 32, 32, negatives=1))
    assert losses.describe() == (
        'a: 1 InfoNCE (xy), no in-batch negatives, temperature 0.1; '
        'b: 1 InfoNCE (both) + 0.5 uniformity'
    )
    shared = read_source_losses(InfoNCE(terms=terms), Data({'a': {}, 'b': {}}, 32, 32, 32))
    assert shared.describe() == '1 InfoNCE (both) + 0.5 uniformity'


@pytest.mark.parametrize(
    ('section', 'loss', 'negatives', 'expected'),
    [
        ({'in_batch': False}, {}, 0, 'in_batch=False leaves InfoNCE without negatives: set data.n'),
        ({'in_batch': False, 'direction': 'yx'}, {}, 2, "direction='yx': with in_batch=False"),
        ({'direction': 'x'}, {}, 2, "direction='x': choose one of xy, yx, both"),
        ({'temperature': 0.001}, {}, 2, 'temperature=0.001: must be from 0.01'),
        ({'infonce': -1.0}, {}, 2, 'infonce=-1.0: must be a number from 0 on'),
        ({'infonce': 0.0}, {}, 2, 'data.sources.a: its loss is 0'),
        ({'terms': (('k', 1),)}, {}, 2, r"data.sources.a.terms: unknown term 'k'; choose from"),
        ({'terms': (('kl', math.nan),)}, {}, 2, "terms=.*: the weight of 'kl' must be finite"),
        ({'terms': (('kl', 1),)}, {}, 2, 'needs the field of its scores: set --config.data.source'),
        ({}, {'terms': (('cosent', 1),)}, 2, 'needs the field of its score: set --config.data.sou'),
        ({'scores': 's', 'terms': (('kl', 1),)}, {}, 0, "'kl' compares y with hard negatives"),
        ({'score': 's'}, {}, 2, "score='s': graded pairs are not all positives"),
        ({'terms': (('teacher_mse', 1),)}, {}, 2, 'needs loss.teacher'),
        ({}, {'teacher': 'vectors'}, 2, "loss.teacher='vectors' has no effect"),
        ({}, UNUSED_GUIDE, 2, "loss.guide='vectors' has no effect: it masks negatives of InfoNCE"),
        ({}, UNUSED_GUIDE | {'guide': ''}, 2, 'loss.mask_margin=0.1 has no effect: it masks'),
        ({}, UNUSED_DIMENSIONS, 2, r'loss.dimensions=\(4, 8\) has no effect: terms use the full'),
        ({}, {'infonce': -1.0}, 2, 'loss.infonce=-1.0'),
        ({}, {'teacher_temperature': 0.0}, 2, 'loss.teacher_temperature=0.0'),
    ],
    ids=str,
)
def test_loss_that_does_not_fit_is_refused(section, loss, negatives, expected):
    with pytest.raises(UserError, match=expected) as error:
        read(section, loss, negatives)
        make(section, loss, negatives).refuse_unused_keys()
    assert '\n' not in str(error.value)


def make_config(config_file, tmp_path, rows: int = 64, **changes):
    """Returns the tests' config with sources a and b, of `rows` and of half as many pairs."""
    pairs = config_file.with_name('pairs.jsonl').read_text().splitlines()
    config = load_config(config_file)
    (section,) = config['data']['sources'].values()
    config['data']['sources'] = {}
    for name, size in (('a', rows), ('b', rows // 2)):
        path = tmp_path / f'{name}.jsonl'
        path.write_text('\n'.join(pairs[:size]))
        own = {'path': str(path), 'holdout': 0.0, **changes.get(name, {})}
        config['data']['sources'][name] = section | own
    config['train']['batch_pairs'] = 16
    config['evaluation']['every_steps'] = 0
    return config


def test_epochs_of_the_sources_decide_steps_and_batches(config_file, tmp_path):
    """Source a has 4 batches, b has 2: 2 and 6 epochs are 8 and 12 batches."""
    config = make_config(config_file, tmp_path, a={'epochs': 2.0}, b={'epochs': 6.0})
    run = set_up(config, tmp_path / 'run')
    assert run.train.steps == 20
    counts = [run.indices[step].source for step in range(20)]
    assert (counts.count(0), counts.count(1)) == (8, 12)
    config['data']['sources']['b'].pop('epochs')
    with pytest.raises(UserError, match=r'data.sources.b.epochs=None: must be a number above 0'):
        set_up(config, tmp_path / 'run')
    config['data']['sources']['b']['epochs'] = 1.0
    config['train']['epochs'] = 1.0
    with pytest.raises(UserError, match=r'train.epochs=1: .*replace it: set it to 0'):
        set_up(config, tmp_path / 'run')


def test_source_without_any_negatives_is_refused(config_file, tmp_path):
    config = make_config(config_file, tmp_path, a={'in_batch': False, 'negatives': 'none'})
    config['data']['negatives'] = 2
    with pytest.raises(UserError, match='data.sources.a.in_batch=False .* no hard negatives'):
        set_up(config, tmp_path / 'run')


def test_language_model_has_no_loss_of_a_source(config_file, tmp_path):
    config = make_config(config_file, tmp_path, b={'direction': 'xy'})
    config['objective'] = 'lm'
    with pytest.raises(UserError, match=r'data.sources.b.direction: objective=lm has no'):
        set_up(config, tmp_path / 'run')


def test_type_of_a_source_key_is_checked(config_file, tmp_path):
    config = make_config(config_file, tmp_path, a={'in_batch': 'no'})
    with pytest.raises(UserError, match="data.sources.a.in_batch='no': must be True or False"):
        set_up(config, tmp_path / 'run')


def test_missing_scores_are_an_error_with_file_and_line(config_file, tmp_path):
    config = make_config(config_file, tmp_path, a={'scores': 'scores', 'terms': (('kl', 1.0),)})
    config['data']['negatives'] = 2
    path = tmp_path / 'a.jsonl'
    rows = list(map(json.loads, path.read_text().splitlines()))
    for row in rows:
        row['scores'] = [1.0] * (1 + len(row['negatives']))
    rows[6]['scores'].pop()
    path.write_text('\n'.join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"a.jsonl:7: 'scores': not as many scores as texts: 2 sc"):
        set_up(config, tmp_path / 'run')
    del rows[6]['scores']
    path.write_text('\n'.join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"a.jsonl:7: no field 'scores': it has 'x', 'y', 'negat"):
        set_up(config, tmp_path / 'run')


def test_run_goes_on_only_with_its_vectors(tmp_path):
    before = {'pairs': '1', 'loss.guide': '2'}
    _check_vectors(before, {'pairs': 'other', 'loss.guide': '2'}, tmp_path)
    for now in ({'pairs': '1'}, {'loss.guide': '3'}, before | {'loss.teacher': '4'}):
        with pytest.raises(UserError, match=r'loss.(guide|teacher) does not name the vectors'):
            _check_vectors(before, now, tmp_path)
