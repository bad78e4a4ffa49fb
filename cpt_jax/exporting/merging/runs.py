"""Merging of runs: the result is a run with one checkpoint, without the optimizer's state."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.merging.recipe import Recipe
from cpt_jax.model.adapters.lora import merge_adapter
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.encoder import Encoder
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.runs import checkpoint
from cpt_jax.runs.checkpoint import Checkpoints
from cpt_jax.runs.code_version import get_code_version
from cpt_jax.runs.config import flatten
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.runtime.errors import UserError
from cpt_jax.runtime.mesh import make_mesh
from cpt_jax.storage.json_files import write_json

# Keys of the `model` section that change neither the parameters nor what they compute.
_RUNTIME_KEYS = (
    'init',
    'dropout',
    'remat',
    'attention',
    'dtype',
    'layer_loop',
    'freeze_dense',
)
_BYTES_AT_ONCE = 1 << 28
_ENCODER = 'encoder.'
# Parameters of this stack have one slice per layer.
_STACK = 'encoder.blocks.'


class RunPart:
    """The parameters of a run; each is read on demand.

    Attributes:
      run: the checkpoint.
      shapes: shape of each parameter by name, such as 'encoder.blocks.attention.query'.
    """

    def __init__(self, run: EarlierRun):
        """Opens a run. One with adapters is loaded with its base, and merged tensor by tensor."""
        self.run = run
        self._encoder: Encoder | None = None
        self.shapes = checkpoint.read_param_shapes(run.directory, run.step)
        if run.provenance.has_adapters:
            self._encoder = load_embedder(
                run.reference, dtype='float32', base=run.base_path
            ).encoder
            own = [name for name in self.shapes if name.startswith(_ENCODER)]
            self.shapes = {name: self.shapes[name] for name in self.shapes.keys() - {*own}}
            self.shapes |= _list_encoder_shapes(self._encoder)

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Returns some of the parameters."""
        if self._encoder is None:
            return checkpoint.load_some_params(self.run.directory, self.run.step, names)
        others = [name for name in names if not name.startswith(_ENCODER)]
        found = checkpoint.load_some_params(self.run.directory, self.run.step, others)
        for name in {*names} - {*others}:
            module, _, weight = name.removeprefix(_ENCODER).rpartition('.')
            owner = attrgetter(module)(self._encoder) if module else self._encoder
            found[name] = merge_adapter(owner, weight)
        return found


def _list_encoder_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a model without adapters."""
    with jax.set_mesh(make_mesh()):
        shapes = jax.eval_shape(lambda: Encoder(encoder.config, nnx.Rngs(0)))
    nested = checkpoint.to_nested_dict({'encoder': shapes})
    return {name: tuple(leaf.shape) for name, leaf in flatten(nested)}


def check_same_form(runs: list[EarlierRun]) -> None:
    """Raises UserError unless all runs have the architecture and the texts of the first."""
    first = _describe_form(runs[0])
    for run in runs[1:]:
        form = _describe_form(run)
        for key in first:
            if form[key] != first[key]:
                raise UserError(
                    f'--models {run.reference}: has another {key} than {runs[0].reference}: '
                    f'{_shorten(form[key])}, not {_shorten(first[key])}'
                )


def _describe_form(run: EarlierRun) -> dict[str, Any]:
    """Returns everything that must be equal, by the name that a message has for it."""
    provenance = run.provenance
    tokenizer = run.load_tokenizer()
    config: EncoderConfig = run.encoder_config(run.get_vocab_size(tokenizer))
    architecture = {
        f'model.{key}': value
        for key, value in dataclasses.asdict(config).items()
        if key not in _RUNTIME_KEYS
    }
    return {
        'objective': provenance.objective,
        **architecture,
        'tokenizer': tokenizer.fingerprint,
        'tokenizer.closing': provenance.closing,
        'prompt.template': provenance.template,
        'beginning of texts': provenance.begin,
    }


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f'{text[:40]}...'


def merge_runs(runs: list[EarlierRun], recipe: Recipe, folder: Path) -> None:
    """Writes a run whose only checkpoint has the merged parameters.

    At most 256 MB of each part, or one tensor, are in memory at a time, next to the result. The
    step is the largest of all parts; config, tokenizer and metadata are those of the first, except
    the sources, which are those of all parts, and `cleaned`, which is stored only if all parts had
    the same data and origin.

    Args:
      runs: the checkpoints, of the same form.
      recipe: what is merged.
      folder: empty directory to write to.

    Raises:
      UserError: the parameters have other names or shapes.
    """
    check_same_form(runs)
    parts = [RunPart(run) for run in runs]
    for part in parts[1:]:
        if part.shapes != parts[0].shapes:
            differing = {*part.shapes.items()} ^ {*parts[0].shapes.items()}
            raise UserError(
                f'--models {part.run.reference}: has other parameters than {runs[0].reference}: '
                f'{min(name for name, _ in differing)}'
            )
    merged: dict[str, np.ndarray] = {}
    for names in _group_names(parts[0].shapes):
        read = [part.read(names) for part in parts]
        for name in names:
            merged[name] = _merge_parameter([params.pop(name) for params in read], name, recipe)
    _write_run(runs, checkpoint.unflatten(merged), recipe, folder)


def _group_names(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Yields names of parameters that are read together, at most _BYTES_AT_ONCE or one parameter.

    Reading a checkpoint has a cost of its own, so that single small parameters take long.
    """
    group: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = 4 * math.prod(shape)
        if group and size + more > _BYTES_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    yield group


def _merge_parameter(tensors: list[np.ndarray], name: str, recipe: Recipe) -> np.ndarray:
    """Returns a merged parameter in float32; layers of a stack are merged one by one."""
    if recipe.method == 'linear' or not name.startswith(_STACK):
        return recipe.merge(tensors).astype(np.float32)
    layers = [recipe.merge(layer).astype(np.float32) for layer in zip(*tensors, strict=True)]
    return np.stack(layers)


def _join_sources(runs: list[EarlierRun]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the sections of all sources that the parts were trained on, and `Provenance.sources`.

    A source of the same data is listed once. Another one whose name is taken gets a number.
    """
    first = runs[0].provenance
    sections = dict(first.config['data']['sources'])
    fingerprints = dict(first.sources)
    for run in runs[1:]:
        for name, section in run.provenance.config['data']['sources'].items():
            fingerprint = run.provenance.sources.get(name)
            if fingerprint is None:  # of a run of an earlier version
                is_known = section in sections.values()
            else:
                is_known = fingerprint in fingerprints.values()
            if is_known:
                continue
            numbered = (f'{name}_{number}' for number in itertools.count(2))
            free = next(key for key in itertools.chain([name], numbered) if key not in sections)
            sections[free] = section
            if fingerprint is not None:
                fingerprints[free] = fingerprint
    return sections, fingerprints


def _find_shared_cleaned(
    runs: list[EarlierRun],
) -> Mapping[str, Mapping[str, Any] | list[str] | None]:
    """Returns `Provenance.cleaned` of runs with the same data and origin; {} of others, since the
    data of the first say nothing about those of all.
    """
    described = [
        (
            run.provenance.cleaned,
            run.provenance.sources,
            run.provenance.config.get('init_from', ''),
        )
        for run in runs
    ]
    return described[0][0] if all(other == described[0] for other in described) else {}


def _write_run(
    runs: list[EarlierRun], params: Mapping[str, Any], recipe: Recipe, folder: Path
) -> None:
    """Writes a checkpoint of the first run's form with other parameters."""
    first = runs[0]
    config = dict(first.provenance.config)
    sections, fingerprints = _join_sources(runs)
    config['data'] = {**config['data'], 'sources': sections}
    config['lora'] = {**config['lora'], 'rank': 0, 'base': 'float32'}
    provenance = dataclasses.replace(
        first.provenance,
        config=config,
        sources=fingerprints,
        code=get_code_version(),
        base=None,
        cleaned=_find_shared_cleaned(runs),
        merged=[
            {**part, 'init_from': run.provenance.list_origins()}
            for part, run in zip(recipe.describe_parts(), runs, strict=True)
        ],
    )
    directory = RunDir(folder)
    saved = Checkpoints(
        directory.checkpoints,
        checkpoint.read_tokenizer_file(first.directory, first.step),
        provenance.to_json(),
        every_steps=1,
        keep_latest=1,
        keep_every=0,
    )
    saved.save(max(run.step for run in runs), {'params': params})
    saved.close()
    write_json(directory.config, config)
    write_json(directory.data, {})
