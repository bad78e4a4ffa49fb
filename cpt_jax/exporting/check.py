"""Goes through a directory as its readers would, and says what would break where.

Of the readers, sentence-transformers 6 and transformers 5 are run in the tests; what is said of
others is from reading their source and their documentation (sentence-transformers 2 to 5.3,
transformers 4, text-embeddings-inference, vLLM).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from safetensors import safe_open

from cpt_jax.exporting.golden import GOLDEN, TOLERANCE, differences, read_golden
from cpt_jax.exporting.sentence_transformers import MODULES
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.families.known import FAMILIES
from cpt_jax.model.families.load import Names
from cpt_jax.model.formats.safetensors_files import Files
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runtime.errors import UserError

ST, OLD_ST, TRANSFORMERS, TEI, VLLM, ALL = 'ST', 'ST < 5.4', 'transformers', 'TEI', 'vLLM', 'all'
# Position tables that transformers indexes from the left edge of a row, padding or not.
_LEARNED = ('bert', 'gpt2')
_FLAGS = {
    'cls_token': 'cls',
    'mean_tokens': 'mean',
    'max_tokens': 'max',
    'mean_sqrt_len_tokens': 'mean_sqrt_len',
    'weightedmean_tokens': 'weightedmean',
    'lasttoken': 'lasttoken',
}


class Defect(NamedTuple):
    """Something that breaks.

    Attributes:
      where: file, or file: key.
      what: is wrong, and what would be right.
      readers: for whom.
    """

    where: str
    what: str
    readers: str


class Report(NamedTuple):
    """What a check found."""

    directory: Path
    looked_at: list[str]
    defects: list[Defect]

    def table(self) -> str:
        """For the terminal: what was looked at, and each defect."""
        marks = [
            (part, sum(defect.where.startswith(part) for defect in self.defects))
            for part in self.looked_at
        ]
        width = max(len(part) for part in self.looked_at)
        lines = [
            f'{self.directory}',
            *(
                f'  {part:<{width}}  {f"{count} wrong" if count else "good"}'
                for part, count in marks
            ),
        ]
        return '\n'.join(
            [
                *lines,
                *(
                    f'{defect.where}: {defect.what} (breaks: {defect.readers})'
                    for defect in self.defects
                ),
            ]
        )


class _Directory:
    """The JSON files of a directory, empty for what is missing or broken (which is a defect of its
    own).
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
        places = [
            module.get('path', '')
            for module in self.modules
            if str(module.get('type', '')).endswith('.Pooling')
        ]
        self.pooling_file = f'{places[0]}/config.json' if places else '1_Pooling/config.json'
        self.pooling = self._read(self.pooling_file)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _read(self, name: str, kind: type = dict) -> Any:
        try:
            content = json.loads((self.path / name).read_text('utf-8'))
        except (OSError, ValueError):
            return kind()
        return content if isinstance(content, kind) else kind()

    @property
    def kind(self) -> str:
        return self.config.get('model_type', '')

    @property
    def width(self) -> int:
        return self.config.get('hidden_size') or self.config.get('n_embd') or 0

    @property
    def positions(self) -> int:
        return self.config.get('max_position_embeddings') or self.config.get('n_positions') or 0

    @property
    def longest(self) -> int:
        """Tokens of a text."""
        limits = (
            self.sentence.get('max_seq_length'),
            self.tokenizer_config.get('model_max_length'),
            self.positions,
        )
        return min([limit for limit in limits if limit] or [512])

    @property
    def causal(self) -> bool:
        switched = self.config.get('is_causal') is False or self.config.get(
            'use_bidirectional_attention'
        )
        return self.kind not in ('bert', 'modernbert') and not switched

    @property
    def mode(self) -> str:
        """Of pooling; '' where it is not clear."""
        modes = [name for flag, name in _FLAGS.items() if self.pooling.get(f'pooling_mode_{flag}')]
        return (
            modes[0]
            if len(modes) == 1
            else self.pooling.get('pooling_mode', '')
            if not modes
            else ''
        )


def check(directory: Path) -> Report:
    """Looks at every field that a reader of the directory looks at.

    Raises:
      UserError: there is no such directory, or nothing in it says what it is.
    """
    if not (directory / 'config.json').is_file():
        raise UserError(f'--check {directory}: no config.json there; give the directory of a model')
    files = _Directory(directory)
    defects = list(_unreadable(directory))
    for look in _LOOKS.values():
        defects += look(files)
    if not defects:
        defects += _as_we_read_it(directory)
    return Report(
        directory,
        [
            name
            for name in [*_LOOKS, GOLDEN]
            if (directory / name).exists() or name == 'model.safetensors'
        ],
        defects,
    )


def _unreadable(directory: Path) -> Iterator[Defect]:
    for path in sorted([*directory.glob('*.json'), *directory.glob('*/config.json')]):
        try:
            json.loads(path.read_text('utf-8'))
        except ValueError as error:
            yield Defect(str(path.relative_to(directory)), f'not JSON ({error})', ALL)


def _config(files: _Directory) -> Iterator[Defect]:
    config = files.config
    if not files.kind:
        yield Defect('config.json: model_type', 'is missing', ALL)
    if not config.get('architectures'):
        yield Defect(
            'config.json: architectures', 'is missing; such as ["BertModel"]', f'{TEI}, {VLLM}'
        )
    if not files.positions:
        yield Defect('config.json: max_position_embeddings', 'is missing', TEI)
    causal_key, open_key = config.get('is_causal'), config.get('use_bidirectional_attention')
    if (
        None not in (causal_key, open_key)
        and causal_key == open_key
        and files.kind != 'gemma3_text'
    ):
        said = f'is {causal_key}, and use_bidirectional_attention too: one must say the opposite'
        yield Defect('config.json: is_causal', said, f'{TRANSFORMERS}, {TEI}')
    dtypes = {config.get(key) for key in ('dtype', 'torch_dtype')} - {None}
    if len(dtypes) > 1:
        yield Defect(
            'config.json: dtype',
            f'is not torch_dtype: {sorted(dtypes)}',
            f'{TRANSFORMERS} 4 and 5 load different weights',
        )
    rope = config.get('rope_parameters')
    if (
        isinstance(rope, dict)
        and 'rope_theta' in rope
        and config.get('rope_theta', rope['rope_theta']) != rope['rope_theta']
    ):
        yield Defect(
            'config.json: rope_theta', "is not rope_parameters'", f'{TRANSFORMERS} 4, {TEI}'
        )
    if isinstance(rope, dict) and 'rope_theta' in rope and 'rope_theta' not in config:
        yield Defect(
            'config.json: rope_theta',
            'stands in rope_parameters alone',
            f'{TRANSFORMERS} 4 and {TEI} < 1.9 take 10,000',
        )


def _weights(files: _Directory) -> Iterator[Defect]:
    try:
        tensors = Files(files.path)
    except UserError as error:
        yield Defect('model.safetensors', str(error), ALL)
        return
    for path in sorted(files.path.glob('*.safetensors')):
        with safe_open(path, 'np') as file:
            if (file.metadata() or {}).get('format') != 'pt':
                yield Defect(
                    f'model.safetensors: {path.name}',
                    'its metadata have no {"format": "pt"}',
                    f'{TRANSFORMERS} 4',
                )
    if files.kind in FAMILIES:
        try:
            found = open_pretrained(str(files.path))
        except UserError as error:
            yield Defect('model.safetensors', str(error), 'cpt_jax')
            return
        try:
            Names(found.family, tensors, EncoderConfig(vocab_size=found.rows, **found.shape))
        except UserError as error:
            yield Defect('model.safetensors', str(error), ALL)


def _tokenizer(files: _Directory) -> Iterator[Defect]:
    if not files.has('tokenizer.json'):
        yield Defect('tokenizer.json', 'is missing', TEI)
        return
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(files.path / 'tokenizer.json'))
    except Exception as error:  # the library raises bare exceptions
        yield Defect('tokenizer.json', f'cannot be read: {str(error).splitlines()[0]}', ALL)
        return
    rows = files.config.get('vocab_size', 0)
    ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    if rows and ids > rows:
        yield Defect('tokenizer.json', f'has {ids} ids, and the embedding {rows} rows', ALL)
    tokenizer.no_padding()
    tokenizer.enable_truncation(files.longest)
    if files.mode == 'lasttoken':
        yield from _closing(files, tokenizer)


def _closing(files: _Directory, tokenizer: tokenizers.Tokenizer) -> Iterator[Defect]:
    """Does the token whose state is the vector end every text, also an empty one and one that is
    cut?
    """
    texts = {'empty': '', 'short': 'a word', 'long': 'word ' * 20_000}
    last = {name: tokenizer.encode(text).tokens[-1:] for name, text in texts.items()}
    if len({tuple(tokens) for tokens in last.values()}) > 1:
        yield Defect(
            'tokenizer.json: post_processor',
            f'adds no closing token: texts end in {last}, and the vector is the state of the last '
            f'token',
            f'{ALL} (add_eos_token in tokenizer_config.json does not help: transformers 5 does '
            f'not read it)',
        )
        return
    named = {key: files.tokenizer_config.get(key) for key in ('eos_token', 'pad_token')}
    named = {
        key: token['content'] if isinstance(token, dict) else token for key, token in named.items()
    }
    if named['eos_token'] and last['short'][0] not in named.values():
        yield Defect(
            'tokenizer_config.json: eos_token',
            f'is {named["eos_token"]!r}, and texts end in {last["short"][0]!r}',
            VLLM,
        )


def _tokenizer_config(files: _Directory) -> Iterator[Defect]:
    own = files.tokenizer_config
    if own.get('padding_side') == 'left' and files.kind in _LEARNED:
        yield Defect(
            'tokenizer_config.json: padding_side',
            f"is left, and {files.kind} counts positions from a row's edge: in a batch texts get "
            f'other vectors than alone; right is right',
            f'{ST}, {TRANSFORMERS}',
        )
    if own.get('truncation_side') == 'left':
        lost = 'is left: of long texts the beginning is lost, and the prompt with it'
        yield Defect('tokenizer_config.json: truncation_side', lost, f'{ST}, {TRANSFORMERS}')
    longest = own.get('model_max_length') or 0
    if files.positions and longest > files.positions and not files.sentence.get('max_seq_length'):
        many = f'is {longest:,}, and there are {files.positions:,} positions'
        yield Defect('tokenizer_config.json: model_max_length', many, f'{ST}, {TRANSFORMERS}')


def _modules(files: _Directory) -> Iterator[Defect]:
    if not files.has('modules.json'):
        return  # a plain model of transformers
    if not files.modules:
        yield Defect('modules.json', 'is no list of modules', ST)
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
                f'{kind!r} is a name of version 5.4',
                f'{OLD_ST}, {VLLM} before September 2026',
            )
    names = [str(module.get('type', '')).rpartition('.')[2] for module in files.modules]
    if names[:2] != list(MODULES[:2]):
        yield Defect(
            'modules.json',
            f'begins with {names[:2]}, not with a transformer and a pooling',
            f'{ST}, {VLLM}',
        )


def _pooling(files: _Directory) -> Iterator[Defect]:
    where, pooling = '1_Pooling/config.json', files.pooling
    if not files.has('modules.json'):
        return
    if not files.has(files.pooling_file):
        yield Defect(where, f'{files.pooling_file} is missing', f'{ST}, {TEI}')
        return
    if 'pooling_mode' in pooling or 'embedding_dimension' in pooling:
        said = 'is in the short form of version 5.4; write pooling_mode_lasttoken and its like'
        yield Defect(where, said, f'{OLD_ST}, {TEI}, {VLLM} before September 2026')
    elif not {'pooling_mode_cls_token', 'pooling_mode_mean_tokens'} <= pooling.keys():
        yield Defect(
            where,
            'pooling_mode_cls_token and pooling_mode_mean_tokens must be there, true or false',
            TEI,
        )
    if not files.mode:
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
            f'word_embedding_dimension is {width}, and the states have {files.width} units',
            ST,
        )
    if files.causal and files.mode in ('cls', 'mean') and _closes(files):
        yield Defect(
            where,
            f'is {files.mode}, and texts get a closing token that sees all before it: lasttoken '
            f'is meant',
            ALL,
        )
    elif files.causal and files.mode == 'cls':
        yield Defect(where, 'is cls, and the first token of a causal model sees no other', ALL)
    # With golden.json there are vectors to tell by: a model that was trained from BERT by us has
    # its vectors at the last token.
    if (
        not files.causal
        and files.kind == 'bert'
        and files.mode == 'lasttoken'
        and not files.has(GOLDEN)
    ):
        yield Defect(where, 'is lasttoken, and BERT was trained for cls or mean', ALL)


def _closes(files: _Directory) -> bool:
    """Does the tokenizer end a text with a token of its own, without beginning it with one?"""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(files.path / 'tokenizer.json'))
    except Exception:  # told of above
        return False
    plain, whole = (
        tokenizer.encode('word', add_special_tokens=special).ids for special in (False, True)
    )
    return len(whole) > len(plain) and whole[: len(plain)] == plain


def _lengths(files: _Directory) -> Iterator[Defect]:
    where = 'sentence_bert_config.json'
    if not files.has('modules.json'):
        return
    if 'max_seq_length' not in files.sentence:
        yield Defect(
            f'{where}: max_seq_length',
            'is missing',
            f"{TEI} does not start; {OLD_ST} takes the model's own maximum",
        )
        return
    longest = files.sentence['max_seq_length']
    if files.positions and longest and longest > files.positions:
        yield Defect(
            f'{where}: max_seq_length',
            f'is {longest:,}, and there are {files.positions:,} positions',
            f'{ST}, {TEI}',
        )


def _prompts(files: _Directory) -> Iterator[Defect]:
    where, given = 'config_sentence_transformers.json', files.sentence_transformers
    prompts = given.get('prompts') or {}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            said = f'{name} is {json.dumps(prompt)}, and must be a string, if an empty one'
            yield Defect(f'{where}: prompts', said, f'{TEI} does not start; {ST} fails')
    default = given.get('default_prompt_name')
    if default is not None and default not in prompts:
        yield Defect(
            f'{where}: default_prompt_name',
            f'is {default!r}, and prompts have {", ".join(prompts) or "none"}',
            ST,
        )
    if 'requirements' in given:
        yield Defect(
            f'{where}: requirements', 'makes loading fail where one is not met', f'{ST} >= 6'
        )


def _as_we_read_it(directory: Path) -> Iterator[Defect]:
    """What only shows when texts become vectors."""
    try:
        golden = read_golden(directory)
        if golden is None:
            open_pretrained(str(directory))
            return
        largest = max(differences(directory, golden).values())
    except UserError as error:
        yield Defect('golden.json', str(error), 'cpt_jax')
        return
    dtype = json.loads((directory / 'config.json').read_text('utf-8')).get('dtype', 'float32')
    if not largest <= TOLERANCE.get(dtype, 1e-5):  # nor if it is no number
        said = (
            f'the vectors differ from those in it by {largest:.1e}: weights, tokens or pooling '
            f'are not those of the export'
        )
        yield Defect('golden.json', said, ALL)


_LOOKS: dict[str, Callable[[_Directory], Iterator[Defect]]] = {
    'config.json': _config,
    'model.safetensors': _weights,
    'tokenizer.json': _tokenizer,
    'tokenizer_config.json': _tokenizer_config,
    'modules.json': _modules,
    '1_Pooling/config.json': _pooling,
    'sentence_bert_config.json': _lengths,
    'config_sentence_transformers.json': _prompts,
}
