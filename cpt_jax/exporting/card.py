"""README.md of an export: what the model is, what it was trained on, how it scores, how to load
it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from etils import epath

from cpt_jax.evals.report.curves import read_metrics, save_curves
from cpt_jax.evals.store.results import format_score, metric_label
from cpt_jax.runs.provenance import Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.text.tokenizer import Side

CURVES = 'training.png'
# Kinds of config.json that text-embeddings-inference has code of its own for.
SERVED_BY_TEI = ('bert', 'modernbert', 'gemma3_text', 'qwen2', 'qwen3', 'mistral', 'llama')


class ExportedRun(NamedTuple):
    """The checkpoint that an export is made from.

    Attributes:
      weights: dtype of the weights in the export.
    """

    directory: RunDir
    step: int
    provenance: Provenance
    weights: str
    license_id: str


class Written(NamedTuple):
    """One directory that others load.

    Attributes:
      name: within the export; '' for the export itself.
      sides: whose texts it is for.
      prompts: by sentence-transformers' names.
      max_tokens: of a text, prompt and special tokens included.
      difference: the largest of a unit, between the run's vectors and those of a reload.
    """

    name: str
    sides: tuple[Side, ...]
    prompts: Mapping[str, str]
    max_tokens: int
    difference: float


def write_card(
    folder: Path, run: ExportedRun, name: str, kind: str, width: int, parts: Sequence[Written]
) -> None:
    """Writes README.md, and the curves of the training run where it has any.

    Args:
      name: of the model: its directory's.
      kind: model_type of config.json.
      width: of the vectors.
    """
    metrics = read_metrics(epath.Path(run.directory.metrics))
    curves = save_curves(metrics, folder / CURVES)
    config = run.provenance.config
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = run.provenance.template
    text = environment.get_template('card_prompted.md.j2' if template else 'card.md.j2').render(
        template=template,
        quoted=repr(template),
        name=name,
        kind=kind,
        width=width,
        parts=parts,
        run=run,
        batch=config['train']['batch_pairs'],
        model=config['model'],
        init_from=config['init_from'],
        sources=_sources(run),
        scores=_scores(run),
        curves=CURVES if curves else '',
        served_by_tei=kind in SERVED_BY_TEI,
    )
    (folder / 'README.md').write_text(text, 'utf-8')


def _sources(run: ExportedRun) -> list[dict[str, Any]]:
    """Name, kind, weight and summary of each source of the training data."""
    described = read_json_file(run.directory.data, optional=True)
    sources = run.provenance.config['data']['sources']
    return [
        {
            'name': name,
            'kind': source['kind'],
            'weight': source['weight'],
            'summary': described.get(name, {}).get('summary', ''),
        }
        for name, source in sources.items()
    ]


def _scores(run: ExportedRun) -> list[tuple[str, str, str, str]]:
    """(task, metric, the model's score, BM25's or '') of the run's results, if they are of the
    checkpoint that is exported.
    """
    results = read_json_file(run.directory.results, optional=True)
    if results.get('model') != f'{run.directory.path.name}@{run.step}':
        return []
    rows = []
    for name, row in results['tasks'].items():
        metric = row['settings']['main_metric']
        scores = row['main_score'], row.get('baselines', {}).get('bm25', {}).get(metric)
        rows.append(
            (
                name,
                metric_label(metric),
                *('' if score is None else format_score(metric, score) for score in scores),
            )
        )
    return rows
