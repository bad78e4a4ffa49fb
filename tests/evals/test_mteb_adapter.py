"""Models as mteb encoders, with fakes of mteb's classes. tests/oracles runs mteb itself."""

import enum
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cpt_jax.embed.load import load_embedder
from cpt_jax.evals import mteb_model
from cpt_jax.runtime.errors import UserError
from tests.embed.test_embedder import write_run


class PromptType(enum.StrEnum):
    """A fake of mteb.types.PromptType."""

    query = 'query'
    document = 'document'


class ModelMeta(SimpleNamespace):
    """A fake of mteb's ModelMeta."""

    @classmethod
    def create_empty(cls, overwrites: dict) -> 'ModelMeta':
        return cls(**overwrites)


@pytest.fixture(autouse=True)
def mteb(monkeypatch):
    fake = SimpleNamespace(ModelMeta=ModelMeta)
    for name in ('mteb', 'mteb.models'):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, 'mteb.models.model_meta', fake)


@pytest.fixture(scope='module')
def run(tmp_path_factory, tokenizer) -> str:
    return str(write_run(tmp_path_factory.mktemp('mteb') / 'mine', tokenizer))


def test_model_meta_describes_the_run(run):
    meta = mteb_model(run).mteb_model_meta
    assert (meta.name, meta.revision, meta.max_tokens, meta.embed_dim, meta.framework) == (
        'cpt_jax/mine',
        'step_200',
        40,
        32,
        ['JAX'],
    )


def test_prompt_types_select_the_side(run):
    embed, texts = load_embedder(run), ['a list', 'of files', 'and a parser']
    batches = [{'text': texts[:2]}, {'text': texts[2:]}]
    for model, prompt_type, side in [
        (mteb_model(run), PromptType.query, 'x'),
        (mteb_model(run), PromptType.document, 'y'),
        (mteb_model(run), None, 'x'),
        (mteb_model(run, symmetric='y'), None, 'y'),
    ]:
        found = model.encode(
            batches,
            task_metadata=None,
            hf_split='test',
            hf_subset='default',
            prompt_type=prompt_type,
        )
        np.testing.assert_allclose(found, embed(texts, side), atol=1e-6)
    np.testing.assert_allclose(model.similarity(found, found), found @ found.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(found, found), 1, atol=1e-5)


def test_missing_mteb_is_reported_with_the_install_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mteb.models.model_meta', None)
    with pytest.raises(UserError, match=r'mteb is not installed: pip install mteb=='):
        mteb_model(run)
