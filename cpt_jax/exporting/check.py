"""Checks of a model directory from the point of view of the libraries that load it.

The tests run sentence-transformers 6 and transformers 5. Statements about the other readers are
from their source code and documentation (sentence-transformers 2 to 5.3, transformers 4,
text-embeddings-inference, vLLM).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from safetensors import safe_open

from cpt_jax.exporting.golden import GOLDEN, TOLERANCE, compute_differences, read_golden
from cpt_jax.exporting.json_values import find_wrong_values
from cpt_jax.exporting.sentence_transformers import MODULES
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.known import FAMILIES
from cpt_jax.model.families.load import TensorNames
from cpt_jax.model.formats.weight_files import open_weight_files
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runtime.errors import UserError

ST, OLD_ST, TRANSFORMERS, TEI, VLLM, ALL = 'ST', 'ST < 5.4', 'transformers', 'TEI', 'vLLM', 'all'
# Models with learned positions, which transformers counts from the left edge of a row even if that
# is padding.
_LEARNED_POSITIONS = ('bert', 'distilbert', 'gpt2')
# Models whose attention is bidirectional without a key in config.json.
_BIDIRECTIONAL = (
    'bert',
    'distilbert',
    'gte',
    'modernbert',
    'mpnet',
    'nomic_bert',
    'roberta',
    'xlm-roberta',
)
# Pooling mode by the suffix of its key pooling_mode_... in the pooling file.
_POOLING_FLAGS = {
    'cls_token': 'cls',
    'mean_tokens': 'mean',
    'max_tokens': 'max',
    'mean_sqrt_len_tokens': 'mean_sqrt_len',
    'weightedmean_tokens': 'weightedmean',
    'lasttoken': 'lasttoken',
}


class Defect(NamedTuple):
    """A defect that breaks a reader.

    Attributes:
      where: file, or 'file: key'.
      what: what is wrong, and what would be right.
      readers: readers that break.
    """

    where: str
    what: str
    readers: str


class Report(NamedTuple):
    """Result of a check.

    Attributes:
      directory: directory that was checked.
      checked_files: files that were checked.
      defects: defects that were found.
    """

    directory: Path
    checked_files: list[str]
    defects: list[Defect]

    def format_table(self) -> str:
        """Returns a table of the checked files and a line for each defect, for the terminal."""
        lines = [f'{self.directory}']
        width = max(len(part) for part in self.checked_files)
        for part in self.checked_files:
            count = sum(defect.where.startswith(part) for defect in self.defects)
            mark = f'{count} wrong' if count else 'good'
            lines.append(f'  {part:<{width}}  {mark}')
        for defect in self.defects:
            lines.append(f'{defect.where}: {defect.what} (breaks: {defect.readers})')
        return '\n'.join(lines)


class _Directory:
    """The JSON files of a directory.

    A missing or broken file is empty here, and values of a wrong type are left out; `_check_json`
    reports them.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = self._read('config.json')
        self.modules = [
            module for module in self._read('modules.json', list) if isinstance(module, dict)
        ]
        self.sentence = self._read('sentence_bert_config.json')
        self.sentence_transformers = self._read('config_sentence_transformers.json')
        self.tokenizer_config = self._read('tokenizer_config.json')
        pooling_folders = [
            module.get('path', '')
            for module in self.modules
            if str(module.get('type', '')).endswith('.Pooling')
        ]
        folder = pooling_folders[0] if pooling_folders else '1_Pooling'
        self.pooling_file = f'{folder}/config.json'
        self.pooling = self._read(self.pooling_file)

    def has_file(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _read(self, name: str, kind: type = dict) -> Any:
        try:
            content = json.loads((self.path / name).read_text('utf-8'))
        except (OSError, ValueError, RecursionError):
            return kind()
        if not isinstance(content, kind):
            return kind()
        if isinstance(content, dict):
            for key in find_wrong_values(name, content):
                del content[key]
        return content

    @property
    def model_type(self) -> str:
        return self.config.get('model_type', '')

    @property
    def width(self) -> int:
        """Dimensions of the hidden states; 0 if unknown."""
        config = self.config
        return config.get('hidden_size') or config.get('n_embd') or config.get('dim') or 0

    @property
    def positions(self) -> int:
        """Maximum sequence length of the model; 0 if unknown."""
        # NomicBERT may have both keys, and the larger counts, since its positions have no table.
        rows = max(self.config.get(key, 0) for key in ('max_position_embeddings', 'n_positions'))
        if not rows or self.model_type not in FAMILIES:
            return rows
        return rows - FAMILIES[self.model_type].count_reserved_positions(self.config)

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of a text, as in `open_pretrained`."""
        own = self.sentence.get('max_seq_length') or self.tokenizer_config.get('model_max_length')
        return int(min([limit for limit in (own, self.positions) if limit] or [512]))

    @property
    def is_causal(self) -> bool:
        """Whether attention is causal."""
        is_switched_off = self.config.get('is_causal') is False or self.config.get(
            'use_bidirectional_attention'
        )
        return self.model_type not in _BIDIRECTIONAL and not is_switched_off

    @property
    def pooling_mode(self) -> str:
        """Pooling mode; '' if the files define none, or several."""
        modes = [
            name
            for flag, name in _POOLING_FLAGS.items()
            if self.pooling.get(f'pooling_mode_{flag}')
        ]
        if not modes:
            return self.pooling.get('pooling_mode', '')
        return modes[0] if len(modes) == 1 else ''


def check(directory: Path) -> Report:
    """Checks every field of a model directory that a reader uses.

    Raises:
      UserError: the directory does not exist, or has no config.json.
    """
    if not (directory / 'config.json').is_file():
        raise UserError(f'--check {directory}: has no config.json: give the directory of a model')
    files = _Directory(directory)
    defects = list(_check_json(directory))
    for check_file in _CHECKS.values():
        defects += check_file(files)
    if not defects:
        defects += check_vectors(directory, files.config.get('dtype', 'float32'))
    checked_files = [
        name
        for name in [*_CHECKS, GOLDEN]
        if (directory / name).exists() or name == 'model.safetensors'
    ]
    return Report(directory, checked_files, defects)


def _check_json(directory: Path) -> Iterator[Defect]:
    for path in sorted([*directory.glob('*.json'), *directory.glob('*/config.json')]):
        name = path.relative_to(directory).as_posix()
        try:
            content = json.loads(path.read_text('utf-8'))
        except OSError as error:
            yield Defect(name, f'cannot be read ({error.strerror})', ALL)
            continue
        except (ValueError, RecursionError) as error:
            yield Defect(name, f'not JSON ({error})', ALL)
            continue
        # Files that no reader knows may have any structure: data_config.json of all-MiniLM-L6-v2.
        is_known = name in _CHECKS or name.endswith('/config.json')
        if is_known and not isinstance(content, list if name == 'modules.json' else dict):
            yield Defect(name, 'not JSON of the expected structure', ALL)
            continue
        if isinstance(content, dict):
            for key, what in find_wrong_values(name, content).items():
                yield Defect(f'{name}: {key}', what, ALL)


def _check_config(files: _Directory) -> Iterator[Defect]:
    config = files.config
    if not files.model_type:
        yield Defect('config.json: model_type', 'is missing', ALL)
    if not config.get('architectures'):
        yield Defect(
            'config.json: architectures',
            'is missing; give a class such as ["BertModel"]',
            f'{TEI}, {VLLM}',
        )
    if not files.positions:
        yield Defect('config.json: max_position_embeddings', 'is missing', TEI)
    is_causal = config.get('is_causal')
    is_bidirectional = config.get('use_bidirectional_attention')
    if (
        None not in (is_causal, is_bidirectional)
        and is_causal == is_bidirectional
        and files.model_type != 'gemma3_text'
    ):
        what = f'is {is_causal}, and so is use_bidirectional_attention, which must be the opposite'
        yield Defect('config.json: is_causal', what, f'{TRANSFORMERS}, {TEI}')
    dtypes = {config.get(key) for key in ('dtype', 'torch_dtype')} - {None}
    if len(dtypes) > 1:
        yield Defect(
            'config.json: dtype',
            f'differs from torch_dtype: {sorted(dtypes)}',
            f'{TRANSFORMERS} 4 and 5 load different weights',
        )
    rope = config.get('rope_parameters')
    if (
        isinstance(rope, dict)
        and 'rope_theta' in rope
        and config.get('rope_theta', rope['rope_theta']) != rope['rope_theta']
    ):
        yield Defect(
            'config.json: rope_theta',
            'differs from that in rope_parameters',
            f'{TRANSFORMERS} 4, {TEI}',
        )
    if isinstance(rope, dict) and 'rope_theta' in rope and 'rope_theta' not in config:
        yield Defect(
            'config.json: rope_theta',
            'is only in rope_parameters',
            f'{TRANSFORMERS} 4 and {TEI} < 1.9 take 10,000',
        )


def _check_weights(files: _Directory) -> Iterator[Defect]:
    try:
        open_weight_files(files.path)
    except UserError as error:
        yield Defect('model.safetensors', str(error), ALL)
        return
    for path in sorted(files.path.glob('*.safetensors')):
        with safe_open(path, 'np') as file:
            if (file.metadata() or {}).get('format') != 'pt':
                yield Defect(
                    f'model.safetensors: {path.name}',
                    'its metadata lack {"format": "pt"}',
                    f'{TRANSFORMERS} 4',
                )
    if files.model_type in FAMILIES:
        try:
            found = open_pretrained(str(files.path))
        except UserError as error:
            yield Defect('model.safetensors', str(error), 'cpt_jax')
            return
        try:
            TensorNames(
                found.family, found.files, EncoderConfig(vocab_size=found.rows, **found.shape)
            )
        except UserError as error:
            yield Defect('model.safetensors', str(error), ALL)


def _check_tokenizer(files: _Directory) -> Iterator[Defect]:
    if not files.has_file('tokenizer.json'):
        yield Defect('tokenizer.json', 'is missing', TEI)
        return
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(files.path / 'tokenizer.json'))
    except Exception as error:  # the library raises no more specific type
        yield Defect('tokenizer.json', f'cannot be read: {str(error).splitlines()[0]}', ALL)
        return
    rows = files.config.get('vocab_size', 0)
    ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    if rows and ids > rows:
        yield Defect(
            'tokenizer.json', f'has {ids} ids, but the token embedding has {rows} rows', ALL
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(files.max_tokens)
    if files.pooling_mode == 'lasttoken':
        yield from _check_closing_token(files, tokenizer)


def _check_closing_token(files: _Directory, tokenizer: tokenizers.Tokenizer) -> Iterator[Defect]:
    """Checks that every text ends in the token whose hidden state is the vector.

    That includes an empty text and one that is truncated.
    """
    texts = {'empty': '', 'short': 'a word', 'long': 'word ' * 20_000}
    last = {name: tokenizer.encode(text).tokens[-1:] for name, text in texts.items()}
    if len({tuple(tokens) for tokens in last.values()}) > 1:
        yield Defect(
            'tokenizer.json: post_processor',
            f'adds no closing token: texts end in {last}, and the vector is the hidden state of '
            f'the last token',
            f'{ALL} (add_eos_token in tokenizer_config.json does not help: transformers 5 ignores '
            f'it)',
        )
        return
    named = {key: files.tokenizer_config.get(key) for key in ('eos_token', 'pad_token')}
    named = {
        key: token['content'] if isinstance(token, dict) else token for key, token in named.items()
    }
    if named['eos_token'] and last['short'][0] not in named.values():
        yield Defect(
            'tokenizer_config.json: eos_token',
            f'is {named["eos_token"]!r}, but texts end in {last["short"][0]!r}',
            VLLM,
        )


def _check_tokenizer_config(files: _Directory) -> Iterator[Defect]:
    own = files.tokenizer_config
    if own.get('padding_side') == 'left' and files.model_type in _LEARNED_POSITIONS:
        yield Defect(
            'tokenizer_config.json: padding_side',
            f'is left, but {files.model_type} counts positions from the left edge of a row, so '
            f'vectors of padded texts would change; it must be right',
            f'{ST}, {TRANSFORMERS}',
        )
    prompts = files.sentence_transformers.get('prompts')
    has_prompts = isinstance(prompts, dict) and any(prompts.values())
    # golden.json has the vector of a text that the other side of truncation changes.
    is_tested = files.has_file(GOLDEN)
    if own.get('truncation_side') == 'left' and has_prompts and not is_tested:
        what = 'is left, so long texts lose their beginning and their prompt; it must be right'
        yield Defect('tokenizer_config.json: truncation_side', what, f'{ST}, {TRANSFORMERS}')
    longest = own.get('model_max_length') or 0
    if files.positions and longest > files.positions and not files.sentence.get('max_seq_length'):
        what = f'is {longest:,}, but there are {files.positions:,} positions'
        yield Defect('tokenizer_config.json: model_max_length', what, f'{ST}, {TRANSFORMERS}')


def _check_modules(files: _Directory) -> Iterator[Defect]:
    if not files.has_file('modules.json'):
        return  # a plain transformers model
    if not files.modules:
        yield Defect('modules.json', 'is not a list of modules', ST)
        return
    for module in files.modules:
        kind = str(module.get('type', ''))
        if not kind.startswith('sentence_transformers.'):
            yield Defect(
                'modules.json', f'{kind!r} needs trust_remote_code', f'{ST} >= 6; no other reader'
            )
        elif not kind.startswith('sentence_transformers.models.'):
            yield Defect(
                'modules.json',
                f'{kind!r} is a name that only version 5.4 and later know',
                f'{OLD_ST}, {VLLM} before September 2026',
            )
    names = [str(module.get('type', '')).rpartition('.')[2] for module in files.modules]
    if names[:2] != list(MODULES[:2]):
        yield Defect(
            'modules.json',
            f'begins with {names[:2]}, not with a transformer and a pooling',
            f'{ST}, {VLLM}',
        )


def _check_pooling(files: _Directory) -> Iterator[Defect]:
    where = '1_Pooling/config.json'
    pooling = files.pooling
    if not files.has_file('modules.json'):
        return
    if not files.has_file(files.pooling_file):
        yield Defect(where, f'{files.pooling_file} is missing', f'{ST}, {TEI}')
        return
    if 'pooling_mode' in pooling or 'embedding_dimension' in pooling:
        what = 'is in the short form of version 5.4; write keys such as pooling_mode_lasttoken'
        yield Defect(where, what, f'{OLD_ST}, {TEI}, {VLLM} before September 2026')
    elif not {'pooling_mode_cls_token', 'pooling_mode_mean_tokens'} <= pooling.keys():
        yield Defect(
            where,
            'must have pooling_mode_cls_token and pooling_mode_mean_tokens, true or false',
            TEI,
        )
    if not files.pooling_mode:
        yield Defect(where, 'exactly one pooling_mode_... must be true', f'{ST}, {TEI}, {VLLM}')
    width = pooling.get('word_embedding_dimension') or pooling.get('embedding_dimension')
    if (
        width
        and files.width
        and width != files.width
        and not files.config.get('word_embed_proj_dim')
    ):
        yield Defect(
            where,
            f'word_embedding_dimension is {width}, but hidden states have {files.width} dimensions',
            ST,
        )
    mode = files.pooling_mode
    if files.is_causal and mode in ('cls', 'mean') and _adds_closing_token(files):
        yield Defect(
            where,
            f'is {mode}, but texts get a closing token that attends to all tokens before it, which '
            f'is meant for lasttoken',
            ALL,
        )
    elif files.is_causal and mode == 'cls':
        yield Defect(
            where, 'is cls, but the first token of a causal model attends to no other token', ALL
        )
    # With golden.json, the vectors themselves are compared: a model that cpt_jax trained from BERT
    # does use the last token.
    if (
        not files.is_causal
        and files.model_type == 'bert'
        and mode == 'lasttoken'
        and not files.has_file(GOLDEN)
    ):
        yield Defect(where, 'is lasttoken, but BERT is trained for cls or mean', ALL)


def _adds_closing_token(files: _Directory) -> bool:
    """Returns whether the tokenizer adds special tokens after a text and none before it."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(files.path / 'tokenizer.json'))
    except Exception:  # _check_tokenizer reports it
        return False
    plain = tokenizer.encode('word', add_special_tokens=False).ids
    with_special = tokenizer.encode('word', add_special_tokens=True).ids
    return len(with_special) > len(plain) and with_special[: len(plain)] == plain


def _check_lengths(files: _Directory) -> Iterator[Defect]:
    where = 'sentence_bert_config.json'
    if not files.has_file('modules.json'):
        return
    if 'max_seq_length' not in files.sentence:
        yield Defect(
            f'{where}: max_seq_length',
            'is missing',
            f"{TEI} does not start; {OLD_ST} uses the model's own maximum",
        )
        return
    longest = files.sentence['max_seq_length']
    if files.positions and longest and longest > files.positions:
        yield Defect(
            f'{where}: max_seq_length',
            f'is {longest:,}, but there are {files.positions:,} positions',
            f'{ST}, {TEI}',
        )


def _check_prompts(files: _Directory) -> Iterator[Defect]:
    where = 'config_sentence_transformers.json'
    given = files.sentence_transformers
    prompts = given.get('prompts') or {}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            what = f'{name} is {json.dumps(prompt)}, but must be a string (an empty one for none)'
            yield Defect(f'{where}: prompts', what, f'{TEI} does not start; {ST} fails')
    default = given.get('default_prompt_name')
    if default is not None and default not in prompts:
        yield Defect(
            f'{where}: default_prompt_name',
            f'is {default!r}, but the prompts are {", ".join(prompts) or "none"}',
            ST,
        )
    if 'requirements' in given:
        yield Defect(f'{where}: requirements', 'makes loading fail if one is not met', f'{ST} >= 6')


def check_vectors(directory: Path, dtype: str) -> Iterator[Defect]:
    """Loads the model with cpt_jax and compares its vectors with those of golden.json.

    Args:
      directory: directory of the model or adapter.
      dtype: dtype of the weights.
    """
    try:
        golden = read_golden(directory)
        if golden is None:
            open_pretrained(str(directory))
            return
        largest = max(compute_differences(directory, golden).values())
    except UserError as error:
        yield Defect('golden.json', str(error), 'cpt_jax')
        return
    if not largest <= TOLERANCE.get(dtype, 1e-5):  # also true for NaN
        what = (
            f'its vectors differ from those of the model by {largest:.1e}: weights, tokenizer or '
            f'pooling were changed after the export'
        )
        yield Defect('golden.json', what, ALL)


_CHECKS: dict[str, Callable[[_Directory], Iterator[Defect]]] = {
    'config.json': _check_config,
    'model.safetensors': _check_weights,
    'tokenizer.json': _check_tokenizer,
    'tokenizer_config.json': _check_tokenizer_config,
    'modules.json': _check_modules,
    '1_Pooling/config.json': _check_pooling,
    'sentence_bert_config.json': _check_lengths,
    'config_sentence_transformers.json': _check_prompts,
}
