"""README.md of an export: its model card, with usage, training data and scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cpt_jax.evals.report.curves import read_metrics, save_curves
from cpt_jax.evals.store.results import check_results, format_score, label_metric
from cpt_jax.exporting.markdown import add_filters
from cpt_jax.runs.provenance import Provenance
from cpt_jax.runs.run_dir import RunDir
from cpt_jax.storage.json_checks import OBJECT, check_values
from cpt_jax.storage.json_files import read_json_file
from cpt_jax.storage.templates import open_templates
from cpt_jax.text.tokenizer import Side

CURVES = 'training.png'
# model_type of models that text-embeddings-inference implements.
SERVED_BY_TEI = (
    'bert',
    'roberta',
    'xlm-roberta',
    'distilbert',
    'mpnet',
    'modernbert',
    'gemma3_text',
    'qwen2',
    'qwen3',
    'mistral',
    'llama',
)


class ExportedRun(NamedTuple):
    """A checkpoint that is exported.

    Attributes:
      directory: directory of the run.
      step: int, step of the checkpoint.
      provenance: how the run was trained.
      weights: dtype of the weights in the export.
      license_id: license identifier for the model card.
    """

    directory: RunDir
    step: int
    provenance: Provenance
    weights: str
    license_id: str


class ExportedPart(NamedTuple):
    """A directory of an export that other libraries load as one model.

    Attributes:
      name: path within the export; '' if it is the export itself.
      sides: sides whose texts it embeds.
      prompts: prompts by sentence-transformers' names.
      max_tokens: int, maximum tokens of a text, including prompt and special tokens.
      difference: float, largest absolute difference between any dimension of the run's vectors and
        those after a reload.
      kind: model_type in config.json.
      width: int, dimension of the vectors.
      shorter: maximum tokens in the run, of the sides (by name) whose texts the run truncated to
        fewer than `max_tokens`.
    """

    name: str
    sides: tuple[Side, ...]
    prompts: Mapping[str, str]
    max_tokens: int
    difference: float
    kind: str
    width: int
    shorter: Mapping[str, int]


def write_card(folder: Path, run: ExportedRun, name: str, parts: Sequence[ExportedPart]) -> None:
    """Writes README.md and, if the run has metrics, the plot of its training curves.

    Args:
      folder: directory to write to.
      run: the exported checkpoint.
      name: name of the model, which is that of its directory.
      parts: directories of the export.
    """
    metrics = read_metrics(epath.Path(run.directory.metrics))
    curves = save_curves(metrics, folder / CURVES)
    config = run.provenance.config
    environment = open_templates(Path(__file__).parent, is_html=False)
    add_filters(environment)
    template = run.provenance.template
    text = environment.get_template('card_prompted.md.j2' if template else 'card.md.j2').render(
        template=template,
        name=name,
        kind=parts[0].kind,
        width=parts[0].width,
        parts=parts,
        run=run,
        batch=config['train']['batch_pairs'],
        model=config['model'],
        pooling=config['model']['pooling'],
        dense=bool(config['model'].get('dense')),
        has_delimiters=run.provenance.own_tokenizer is None,
        is_lowercased=(run.provenance.own_tokenizer or {}).get('lower', False),
        origins=run.provenance.list_origins(),
        sources=_describe_sources(run),
        scores=_read_scores(run),
        curves=CURVES if curves else '',
        served_by_tei=parts[0].kind in SERVED_BY_TEI,
    )
    (folder / 'README.md').write_text(text, 'utf-8')


def _describe_sources(run: ExportedRun) -> list[dict[str, Any]]:
    """Returns name, kind, weight and summary of each source of the training data.

    A source whose number of epochs the config sets has no weight, but these.
    """
    described = read_json_file(run.directory.data, optional=True)
    check_values(run.directory.data, described, dict.fromkeys(described, OBJECT))
    sources = run.provenance.config['data']['sources']
    return [
        {
            'name': name,
            'kind': source['kind'],
            'weight': _describe_weight(source),
            'summary': described.get(name, {}).get('summary', ''),
        }
        for name, source in sources.items()
    ]


def _describe_weight(source: Mapping[str, Any]) -> str:
    """Returns the weight of a source, or the number of its epochs."""
    if source.get('epochs'):
        return f'{source["epochs"]:g} epochs'
    return str(source.get('weight', 1.0))


def _read_scores(run: ExportedRun) -> list[tuple[str, str, str, str]]:
    """Returns (task, metric, the model's score, BM25's score or '') from the run's results.

    The list is empty if the results are from another checkpoint than the exported one.
    """
    results = read_json_file(run.directory.results, optional=True)
    check_results(run.directory.results, results, ('main_score', 'settings'))
    if results.get('model') != f'{run.directory.path.name}@{run.step}':
        return []
    rows = []
    for name, row in results.get('tasks', {}).items():
        metric = row['settings']['main_metric']
        bm25_score = row.get('baselines', {}).get('bm25', {}).get(metric)
        rows.append(
            (
                name,
                label_metric(metric),
                _format_optional_score(metric, row['main_score']),
                _format_optional_score(metric, bm25_score),
            )
        )
    return rows


def _format_optional_score(metric: str, score: float | None) -> str:
    return '' if score is None else format_score(metric, score)
