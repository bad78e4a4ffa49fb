"""sentence-transformers embeds with the exports of runs that keep the form of their model, also
texts that are longer than the limit.
"""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from cpt_jax.embed.load import load_embedder
from cpt_jax.training import loop
from tests.training.conftest import config_file  # noqa: F401
from tests.training.test_form import CASES, export_run_as_one, make_config, write_model

pytestmark = pytest.mark.usefixtures('persistent_compilation_cache')


@pytest.mark.parametrize('case', CASES)
def test_exported_run_has_equal_vectors(config_file, tmp_path, case):  # noqa: F811
    model = write_model(tmp_path / 'model', case)
    config = make_config(config_file, model, evaluation__every_steps=0)
    config['data'] |= {'max_tokens_x': 20, 'max_tokens_y': 20}
    assert loop.train(config, tmp_path / 'run') == 0
    part = export_run_as_one(tmp_path / 'run', tmp_path / 'out')
    assert not part.shorter
    theirs = SentenceTransformer(str(tmp_path / 'out'), device='cpu')
    ours, reread = load_embedder(str(tmp_path / 'run')), load_embedder(str(tmp_path / 'out'))
    texts = ['list file', 'Upper Case', 'parser value index error ' * 30]
    for side, encode in (('x', theirs.encode_query), ('y', theirs.encode_document)):
        expected = encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(ours(texts, side), expected, atol=1e-5)
        np.testing.assert_allclose(reread(texts, side), expected, atol=1e-5)
        # The long text is truncated: its end does not count.
        longer = encode([texts[2] + 'other'], normalize_embeddings=True)
        np.testing.assert_allclose(longer[0], expected[2], atol=1e-6)
