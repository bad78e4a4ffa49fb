"""Pretrained models are told apart by their weights."""

from types import SimpleNamespace

from cpt_jax.embed.load import add_weights_fingerprint
from cpt_jax.origin.weights_fingerprint import fingerprint_weights


def test_weights_fingerprint_depends_on_file_contents(tmp_path):
    (tmp_path / 'model' / '2_Dense').mkdir(parents=True)
    for path in ('model.safetensors', '2_Dense/model.safetensors'):
        (tmp_path / 'model' / path).write_text('numbers')
    before = fingerprint_weights(tmp_path / 'model')
    (tmp_path / 'model' / 'README.md').write_text('words')
    assert fingerprint_weights(tmp_path / 'model') == before
    (tmp_path / 'model' / '2_Dense' / 'model.safetensors').write_text('others')
    assert fingerprint_weights(tmp_path / 'model') != before


def test_weights_fingerprint_covers_all_directories(tmp_path):
    for name in ('adapter', 'base'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.safetensors').write_text('numbers')
    before = fingerprint_weights(tmp_path / 'adapter', tmp_path / 'base')
    (tmp_path / 'base' / 'model.safetensors').write_text('others')
    assert fingerprint_weights(tmp_path / 'adapter', tmp_path / 'base') != before


def test_settings_of_an_embedder_tell_apart_models_of_one_name(tmp_path):
    folder = tmp_path / 'model'
    folder.mkdir()
    found = []
    for weights in ('one', 'other'):
        (folder / 'model.safetensors').write_text(weights)
        embedder = SimpleNamespace(workdir=None, settings={})
        add_weights_fingerprint(embedder, str(folder))
        found.append(embedder.settings['weights'])
    assert found[0] != found[1]
    of_run = SimpleNamespace(workdir=folder, settings={})
    add_weights_fingerprint(of_run, str(folder))
    assert of_run.settings == {}
