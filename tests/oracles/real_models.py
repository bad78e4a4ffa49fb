"""Real models that benchmarks/fetch_models.py fetched."""

import os
from pathlib import Path

import pytest

from benchmarks.fetch_models import MODELS


def find_real_model(name: str) -> Path:
    """Returns the path of a model: its directory, or its GGUF file.

    The test is skipped if the model is not there.

    Args:
      name: key of `MODELS`.
    """
    folder = os.environ.get('CPT_JAX_MODELS', '')
    if not folder:
        pytest.skip('CPT_JAX_MODELS is not set: see benchmarks/fetch_models.py')
    weights = Path(folder).expanduser() / name / MODELS[name].weights
    if not weights.is_file():
        pytest.skip(f'{weights} is missing: run benchmarks/fetch_models.py --folder {folder}')
    return weights if weights.suffix == '.gguf' else weights.parent
