r"""Mines hard negatives: documents that a model finds near a query and that are not its positives.

Writes one row per pair, {"id", "x", "y", "negatives", "scores"}, which training reads as it is;
`scores` has the model's score of y and of each negative. The documents are the y's of all pairs and
those of --corpus or of the BEIR folder. Next to the rows, a report (.report.txt) has histograms of
the scores and ten examples. If the program is killed, run the same command again: it continues in
OUTPUT.work. To use several hosts, start the same command on each; process 0 reads and writes.

Example:
  python launch/mine.py --model all-MiniLM-L6-v2 --data my/pairs.jsonl --output mined.jsonl \
      --range=10:100 --negatives=7 --max_share=0.95
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from absl import flags
from etils import epath

from cpt_jax.cli.model_flags import define_model_flags
from cpt_jax.cli.program import define_process_flags, run_program, use_compilation_cache
from cpt_jax.data.equality import EQUALITY_RULES, LATEST_RULE
from cpt_jax.mining.rules import SAMPLINGS, MiningRules, parse_range
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_on_bucket, make_path
from cpt_jax.storage.remote import fetch
from cpt_jax.storage.writable import check_writable

if TYPE_CHECKING:
    # Imports JAX, whose platform is only chosen when the flags are parsed.
    from cpt_jax.embed.embedder import Embedder
    from cpt_jax.mining.miner import ModelVectors
    from cpt_jax.mining.pair_index import PairIndex
    from cpt_jax.mining.pairs_to_mine import PairsToMine
    from cpt_jax.text.tokenizer import Side

_MODEL, _read_model_options = define_model_flags(required=False)
_DATA = flags.DEFINE_string(
    'data',
    None,
    'Pairs: a .jsonl or .csv file, a folder or pattern of them, local or in a bucket (gs://...); a '
    'BEIR folder; or, with --kind=tfds, the name of a data set.',
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'The .jsonl file to write, local or in a bucket (gs://...).', required=True
)
_KIND = flags.DEFINE_enum(
    'kind', None, ['jsonl', 'csv', 'tfds', 'beir'], 'Kind of --data. Default: from its name.'
)
_SPLIT = flags.DEFINE_string(
    'split', '', 'Split of a BEIR folder or a tfds data set. Default: train.'
)
_X = flags.DEFINE_string('x', '', 'Field with the queries. Default: x, query or anchor.')
_Y = flags.DEFINE_string('y', '', 'Field with the documents. Default: y, pos or positive.')
_SEPARATOR = flags.DEFINE_string(
    'separator', '', 'Character between the cells of a .csv file. Default: a comma; .tsv: a tab.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of prepared tfds data sets.')
_MAX_BAD_SHARE = flags.DEFINE_float(
    'max_bad_share', None, 'Maximum fraction of rows that cannot be used. Default: 0.001.'
)
_CORPUS = flags.DEFINE_string(
    'corpus',
    '',
    'File of further documents: .jsonl or .txt, optionally compressed (.jsonl.gz, .txt.gz).',
)
_CORPUS_FIELD = flags.DEFINE_string(
    'corpus_field',
    '',
    "Field of a .jsonl row of --corpus with the text. Default: title + ' ' + text.",
)
_RANGE = flags.DEFINE_string(
    'range',
    '10:100',
    'FIRST:LAST: of the nearest documents that are no positives and not too near, the first FIRST '
    'are skipped, and negatives are taken up to rank LAST.',
)
_NEGATIVES = flags.DEFINE_integer('negatives', 7, 'Negatives per pair.', lower_bound=1)
_MIN_NEGATIVES = flags.DEFINE_integer(
    'min_negatives', 0, 'Leave out pairs with fewer negatives.', lower_bound=0
)
_MAX_SHARE = flags.DEFINE_float(
    'max_share',
    0.95,
    'Maximum score of a negative, as a share of the score of the positive, which may be negative: '
    'positive - |positive| * (1 - max_share). inf: no maximum.',
)
_MARGIN = flags.DEFINE_float(
    'margin', None, 'Minimum by which the score of the positive exceeds that of a negative.'
)
_SAMPLING = flags.DEFINE_enum(
    'sampling', 'top', SAMPLINGS, 'Take the nearest candidates in the range, or random ones.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of --sampling=random.', lower_bound=0)
_BM25 = flags.DEFINE_integer(
    'bm25',
    0,
    'How many of the negatives are taken from the ranking of BM25. With all of them, --model may '
    'be left out; rows then have no scores.',
    lower_bound=0,
)
_RERANKER_SCORES = flags.DEFINE_string(
    'reranker_scores',
    '',
    'A .jsonl file of rows as this program writes, whose scores are those of a reranker: they '
    'replace the scores of the model, and only documents that have one are candidates.',
)
_EQUAL_TEXTS = flags.DEFINE_enum(
    'equal_texts',
    LATEST_RULE,
    EQUALITY_RULES,
    'When two texts are equal, as in data.equal_texts of training. With normalized, neither the '
    'query nor the equal of a positive is a negative; with stripped, only positives are left out.',
)
_INDEX = flags.DEFINE_enum(
    'index',
    'exact',
    ['exact', 'flat', 'ivf', 'hnsw'],
    'Search method: exact search on all devices, or a FAISS index, which keeps all vectors in the '
    'memory of process 0.',
)
_MEMORY = flags.DEFINE_float(
    'memory',
    2.0,
    'GiB for the search, on all devices together. The vectors are on the disk.',
    lower_bound=0.01,
)
_WORK_DIR = flags.DEFINE_string(
    'work_dir',
    None,
    'Folder for vectors and unfinished results. If it is given, it is kept, so that mining the '
    'same texts with other settings embeds nothing. Default: OUTPUT.work, removed at the end.',
)
_join_processes = define_process_flags()


def main() -> None:
    rules = _read_rules()
    output = make_path(_OUTPUT.value, '--output')
    _check_flags(output, rules)
    use_compilation_cache()
    with _join_processes():
        import jax

        if jax.process_index():
            _run_as_worker()
        else:
            _mine(output, rules)


def _read_rules() -> MiningRules:
    first, last = parse_range(_RANGE.value)
    return MiningRules(
        first=first,
        last=last,
        negatives=_NEGATIVES.value,
        max_share=_MAX_SHARE.value if _MODEL.value else np.inf,
        margin=_MARGIN.value,
        sampling=_SAMPLING.value,
        seed=_SEED.value,
        bm25=_BM25.value,
        equal_texts=_EQUAL_TEXTS.value,
    )


def _check_flags(output: Path, rules: MiningRules) -> None:
    """Raises UserError for flags that cannot be used together, before anything is read."""
    from cpt_jax.search.faiss_index import check_installed

    if not output.name.endswith('.jsonl'):
        raise UserError(f'--output {_OUTPUT.value}: must end in .jsonl')
    if not is_on_bucket(output):
        check_writable(output.parent, '--output')
    if _INDEX.value != 'exact':
        check_installed(_INDEX.value)
    if _MODEL.value:
        return
    if rules.bm25 < rules.negatives:
        raise UserError(
            f'--model: is missing; without a model, all negatives are from BM25: add '
            f'--bm25={rules.negatives}'
        )
    needs_scores = {
        'max_share': flags.FLAGS['max_share'].present,
        'margin': _MARGIN.value is not None,
        'reranker_scores': _RERANKER_SCORES.value,
    }
    for name, is_given in needs_scores.items():
        if is_given:
            raise UserError(f'--{name}: needs the scores of a model: add --model')


def _run_as_worker() -> None:
    """Computes what process 0 requests; runs on all other processes."""
    from cpt_jax.search import across_hosts

    if not _MODEL.value:
        return
    embedder = _load_model()
    across_hosts.work_for_leader(_make_embed(embedder))


def _load_model() -> 'Embedder':
    """Loads the model. Raises UserError if the processes loaded different ones."""
    from cpt_jax.embed.load import add_weights_fingerprint, load_embedder
    from cpt_jax.runtime.multihost import check_processes_agree

    embedder = load_embedder(_MODEL.value, **_read_model_options())
    add_weights_fingerprint(embedder, _MODEL.value)
    check_processes_agree(
        [embedder.model_name, embedder.settings],
        f'--model {_MODEL.value} (this process loaded {embedder.model_name}): the processes loaded '
        f'different models: give RUN@STEP, and the same flags on every host',
    )
    return embedder


def _make_embed(embedder: 'Embedder') -> Any:
    def embed(texts: Sequence[str], side: str) -> np.ndarray:
        return embedder(texts, cast('Side', side))

    return embed


def _mine(output: Path, rules: MiningRules) -> None:
    """Reads, searches and writes; runs on process 0 only."""
    from cpt_jax.mining.pairs_to_mine import open_pairs
    from cpt_jax.search import across_hosts
    from cpt_jax.storage.locks import try_lock

    data = open_pairs(
        _DATA.value,
        _KIND.value or '',
        _SPLIT.value,
        _CORPUS.value,
        _CORPUS_FIELD.value,
        x=_X.value,
        y=_Y.value,
        separator=_SEPARATOR.value,
        data_dir=_DATA_DIR.value,
        max_bad_share=_MAX_BAD_SHARE.value,
    )
    for note in data.notes:
        print(note, flush=True)
    # Before the texts are read, which may take long.
    embedder = _load_model() if _MODEL.value else None
    folder = _choose_work_dir(output)
    with try_lock(folder / 'lock') as is_mine:
        if not is_mine:
            raise UserError(f'{folder}: another program works in this folder: choose a --work_dir')
        _mine_in(folder, output, data, rules, embedder)
        if embedder:
            across_hosts.release_workers()
    if not _WORK_DIR.value:
        shutil.rmtree(folder)


def _choose_work_dir(output: Path) -> Path:
    """Returns the local folder for vectors and unfinished results."""
    from cpt_jax.storage.cache import get_cache_folder
    from cpt_jax.storage.paths import local_path

    if _WORK_DIR.value:
        folder = local_path(_WORK_DIR.value, '--work_dir')
        check_writable(folder, '--work_dir')
        return folder
    if is_on_bucket(output):
        return get_cache_folder() / 'mining' / str(output).replace('/', '_')
    return output.with_name(f'{output.name}.work')


def _mine_in(
    folder: Path,
    output: Path,
    data: 'PairsToMine',
    rules: MiningRules,
    embedder: 'Embedder | None',
) -> None:
    """Mines in a folder, and writes the rows and the report."""
    from cpt_jax.mining.mined_rows import write_rows
    from cpt_jax.mining.miner import Miner
    from cpt_jax.mining.mining_report import format_report
    from cpt_jax.mining.pair_index import index_pairs
    from cpt_jax.mining.reranker_scores import read_reranker_scores
    from cpt_jax.storage.atomic_write import write_atomically
    from cpt_jax.storage.upload import upload_folder

    # Without a model, texts that differ in their case alone count as equal.
    fold_case = embedder.folds_case if embedder else True
    reranker = None
    if _RERANKER_SCORES.value:
        path = epath.Path(fetch(_RERANKER_SCORES.value, '--reranker_scores'))
        reranker = read_reranker_scores(path, rules.equal_texts, fold_case)
    index = index_pairs(data, folder, rules.equal_texts, fold_case)
    bm25 = _index_words(index) if rules.bm25 else None
    model = None
    settings: dict[str, Any] = {}
    if embedder:
        model = _embed_all(index, folder, embedder)
        settings = {'model': embedder.model_name, **embedder.settings}
    mined = Miner(index, rules, model, bm25, reranker).mine(folder, settings)

    finished = folder / 'finished' if is_on_bucket(output) else output.parent
    rows = write_rows(finished / output.name, data, index, mined, _MIN_NEGATIVES.value)
    report = format_report(
        data, index, mined, rules, _MIN_NEGATIVES.value, _describe(rules, settings)
    )
    report_name = f'{output.name.removesuffix(".jsonl")}.report.txt'
    write_atomically(finished / report_name, report)
    if is_on_bucket(output):
        upload_folder(finished, str(output.parent), '--output')
    print(report)
    print(f'{rows:,} rows; written to {output} and {output.parent / report_name}')


def _index_words(index: 'PairIndex') -> Any:
    """Returns BM25 of all documents. Raises UserError if they are too many."""
    from cpt_jax.search.bm25 import Bm25
    from cpt_jax.search.searcher import BM25_DOCUMENTS

    if index.documents.size > BM25_DOCUMENTS:
        raise UserError(
            f'--bm25: {index.documents.size:,} documents are more than the {BM25_DOCUMENTS:,} '
            f'whose words it can hold in memory: remove the flag'
        )
    return Bm25(index.documents.read_texts(range(index.documents.size)))


def _embed_all(index: 'PairIndex', folder: Path, embedder: 'Embedder') -> 'ModelVectors':
    """Returns the vectors of all texts; embeds those that the folder does not have."""
    from cpt_jax.mining.miner import ModelVectors
    from cpt_jax.mining.stored_vectors import store_vectors
    from cpt_jax.search.across_hosts import embed_everywhere

    embed = embed_everywhere(_make_embed(embedder))
    queries = store_vectors(folder / 'queries', index.queries, 'x', embedder, embed)
    documents = store_vectors(folder / 'documents', index.documents, 'y', embedder, embed)
    return ModelVectors(queries, documents, _INDEX.value, _MEMORY.value)


def _describe(rules: MiningRules, settings: dict[str, Any]) -> list[str]:
    """Returns the lines of the report about what the negatives depend on."""
    given = ', '.join(f'{name}={value}' for name, value in dataclasses.asdict(rules).items())
    model = f'model {_MODEL.value}, index {_INDEX.value}' if settings else 'BM25'
    return [f'{model}, data {_DATA.value}', given]


def run() -> None:
    """Runs the console script cpt-mine."""
    run_program(main)
