"""What a preparation does: its sources, and the tasks into which their files are divided.

The plan is made once and stored. It does not depend on the number of workers, and neither does any
result.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpt_jax.data.files import InputFile, digest_file_states
from cpt_jax.data.pairs import digest_texts
from cpt_jax.prepare.benchmark_texts import list_test_files
from cpt_jax.prepare.document import Document, Dropped, TextPair, Unreadable
from cpt_jax.prepare.inputs import SourceFiles, digest_model, digest_states, find_source_files
from cpt_jax.prepare.neighbours import load_counter
from cpt_jax.prepare.registry import (
    PAIR_RULES,
    READERS,
    find_other_defaults,
    get_arguments,
    takes_tokenizer,
)
from cpt_jax.prepare.settings import (
    Consistency,
    Decontamination,
    Duplicates,
    Filters,
    Output,
)
from cpt_jax.runs.config import build, check_section, to_json_values
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import read_json_file, write_json
from cpt_jax.storage.paths import is_remote
from cpt_jax.storage.remote import expand_home

# Increment when a change to the code changes what is made of the same files.
PREPARE_VERSION = 5
PLAN_FILE = 'plan.json'
SECTIONS = ('filters', 'duplicates', 'decontamination', 'consistency', 'output')
_MB = 1_000_000
# Bytes of text whose keys one task compares: at most 5 million documents of 100 bytes, whose keys
# take 100 MB and five times as much while they are sorted.
_PARTITION_BYTES = 512 << 20
_NEAR_PARTITION_BYTES = 256 << 20  # a document has 32 keys of its signature
_COMPRESSED = ('.gz', '.zst', '.parquet', '.zip', '.jar', '.whl', '.tgz', '.xz', '.bz2')
_COMPRESSION_RATIO = 4  # of prose and source code with gzip and zstd, about


class PlannedFile(NamedTuple):
    """A file of a task.

    Attributes:
      name: its name in the source.
      path: path to read.
      size: its bytes.
    """

    name: str
    path: str
    size: int

    @property
    def text_size(self) -> int:
        """Estimate of the bytes of its text."""
        is_compressed = self.name.endswith(_COMPRESSED) or '.array_record-' in self.name
        return self.size * (_COMPRESSION_RATIO if is_compressed else 1)


class ShardTask(NamedTuple):
    """Files that are read together, and whose pairs make a shard.

    Attributes:
      source: name of their source.
      files: the files, in order.
    """

    source: str
    files: tuple[PlannedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)

    def digest_files(self) -> str:
        """Returns a digest of the states of the files."""
        return digest_states([InputFile(file.name, Path(file.path)) for file in self.files])


@dataclasses.dataclass(frozen=True)
class SourceRules:
    """How the files of a source are read.

    Attributes:
      reader, pairs: names in READERS and PAIR_RULES.
      reader_arguments, pair_arguments: arguments of the two.
    """

    reader: str
    pairs: str
    reader_arguments: Mapping[str, Any]
    pair_arguments: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """What is filtered and compared for duplicates; see PairRule."""
        return PAIR_RULES[self.pairs].unit

    def read(self, file: PlannedFile) -> Iterator[Document | Unreadable | Dropped]:
        """Yields the documents of a file."""
        return READERS[self.reader].read(Path(file.path), file.name, **self.reader_arguments)

    def make_pairs(self, document: Document) -> list[TextPair | Dropped]:
        """Returns the pairs of a document, and what of it makes no pair.

        Raises:
          BadRecord: the document lacks a field.
        """
        return list(PAIR_RULES[self.pairs].make_pairs(document, **self.pair_arguments))


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A preparation.

    Attributes:
      config: the config, as it is read back from JSON.
      sources: rules of each source, by name.
      tasks: tasks of all sources, in order.
      partitions: number of tasks that look for duplicates.
      inputs: digest of the states of all input files, the tokenizer, the test sets and the model.
    """

    config: Mapping[str, Any]
    sources: Mapping[str, SourceRules]
    tasks: Sequence[ShardTask]
    partitions: int
    inputs: str

    # The sections are read for every document, so they are built once.

    @functools.cached_property
    def filters(self) -> Filters:
        return build(Filters, 'filters', self.config.get('filters', {}))

    @functools.cached_property
    def duplicates(self) -> Duplicates:
        return build(Duplicates, 'duplicates', self.config.get('duplicates', {}))

    @functools.cached_property
    def decontamination(self) -> Decontamination:
        section = self.config.get('decontamination', {})
        return build(Decontamination, 'decontamination', section)

    @functools.cached_property
    def consistency(self) -> Consistency:
        return build(Consistency, 'consistency', self.config.get('consistency', {}))

    @functools.cached_property
    def output(self) -> Output:
        return build(Output, 'output', self.config.get('output', {}))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(task.size for task in self.tasks)

    @property
    def text_size(self) -> int:
        """Estimate of the bytes of all texts."""
        return sum(file.text_size for task in self.tasks for file in task.files)

    @property
    def near_partitions(self) -> int:
        """Number of tasks that look for near duplicates."""
        return 1 + self.text_size // _NEAR_PARTITION_BYTES

    @property
    def fingerprint(self) -> str:
        """Digest of all that the result depends on."""
        return digest_texts(str(PREPARE_VERSION), repr(sorted_items(self.config)), self.inputs)

    def write(self, folder: Path) -> None:
        """Stores the plan in a folder."""
        write_json(
            folder / PLAN_FILE,
            {**dataclasses.asdict(self), 'fingerprint': self.fingerprint},
            indent=None,
        )


def sorted_items(config: Mapping[str, Any]) -> list:
    """Returns the keys and values of a config in an order that does not depend on its file's."""
    return [
        (key, sorted_items(value) if isinstance(value, Mapping) else value)
        for key, value in sorted(config.items())
    ]


@functools.cache
def read_preparation(folder: Path) -> Preparation:
    """Returns the plan that is stored in a folder."""
    stored = read_json_file(folder / PLAN_FILE)
    return Preparation(
        stored['config'],
        {name: SourceRules(**rules) for name, rules in stored['sources'].items()},
        [
            ShardTask(source, tuple(PlannedFile(*file) for file in files))
            for source, files in stored['tasks']
        ],
        stored['partitions'],
        stored['inputs'],
    )


def plan_preparation(config: Mapping[str, Any]) -> Preparation:
    """Returns the plan of a config.

    Raises:
      UserError: a key or value of the config is invalid, or a path has no file.
    """
    config = to_json_values(config)
    known = {'sources', 'tokenizer', *SECTIONS}
    unknown = [name for name in config if name not in known]
    if unknown:
        raise UserError(
            f'unknown config key {unknown[0]}: a config of launch/prepare.py has '
            f'{", ".join(sorted(known))}'
        )
    if not config.get('sources'):
        raise UserError('config key sources is missing or empty: name at least one source')
    section = config.get('decontamination')
    if isinstance(section, dict) and isinstance(section.get('data_dir'), str):
        section['data_dir'] = _make_absolute(section['data_dir'])
    tokenizer_path = _make_absolute(dict(config.get('tokenizer', {})).get('path', ''))
    sources = {}
    found: dict[str, SourceFiles] = {}
    for name, section in sorted(config['sources'].items()):
        sources[name] = parse_source(name, section, tokenizer_path)
        rules = sources[name]
        found[name] = find_source_files(name, section['path'], rules.reader, rules.reader_arguments)
    output = build(Output, 'output', config.get('output', {}))
    sized = {
        name: [
            PlannedFile(file.name, str(file.path.absolute()), size)
            for file, size in zip(each.files, each.measure(), strict=True)
        ]
        for name, each in found.items()
    }
    total = sum(file.size for files in sized.values() for file in files)
    task_bytes = output.shard_mb * _MB or min(max(total / 1000, 4 * _MB), 256 * _MB)
    tasks = [
        ShardTask(name, group)
        for name in sources
        for group in _group_files(sized[name], task_bytes)
    ]
    plan = Preparation(config, sources, tasks, 1, '')
    plan = dataclasses.replace(plan, partitions=1 + plan.text_size // _PARTITION_BYTES)
    # These raise for a bad value, before any work is done.
    _ = plan.filters, plan.duplicates, plan.decontamination, plan.consistency
    digests = [found[name].digest for name in sources]
    return dataclasses.replace(plan, inputs=digest_texts(*digests, *_digest_other_inputs(plan)))


def _digest_other_inputs(plan: Preparation) -> Iterator[str]:
    """Yields digests of the tokenizer, the test sets and the model that a preparation uses."""
    for rules in plan.sources.values():
        if rules.pair_arguments.get('piece_tokens'):
            yield load_counter(rules.pair_arguments['tokenizer_path']).fingerprint
    if plan.decontamination.data_dir:
        yield digest_file_states(list_test_files(plan.decontamination.data_dir))
    if plan.consistency.model:
        yield digest_model(plan.consistency.model)


def _make_absolute(path: str) -> str:
    """Returns a path of the config as it is in every working directory; '' and URLs stay."""
    if not path or is_remote(path):
        return path
    return str(expand_home(path, 'path').absolute())


def parse_source(name: str, section: Mapping[str, Any], tokenizer_path: str) -> SourceRules:
    """Returns the rules of a source's section.

    Args:
      name: name of the source.
      section: `reader`, `path`, `pairs`, and the arguments of the two functions.
      tokenizer_path: path of the tokenizer for rules that count tokens.

    Raises:
      UserError: a key or value is invalid.
    """
    where = f'sources.{name}'
    for key, table in (('reader', READERS), ('pairs', PAIR_RULES)):
        if section.get(key) not in table:
            raise UserError(
                f'{where}.{key} is {section.get(key)!r} and must be one of {", ".join(table)}'
            )
    if not isinstance(section.get('path'), str) or not section['path']:
        raise UserError(f'{where}.path is missing: set it to a file, a folder or a pattern')
    read = READERS[section['reader']].read
    rule = PAIR_RULES[section['pairs']]
    of_reader, of_pairs = get_arguments(read), get_arguments(rule.make_pairs)
    own = {*of_reader, *of_pairs}
    # configs/prepare_text.py lists arguments that another reader, chosen by a flag, does not have.
    arguments = {
        key: value
        for key, value in section.items()
        if key not in _SOURCE_KEYS and (key in own or value not in find_other_defaults(key))
    }
    unknown = [key for key in arguments if key not in own]
    for key in unknown:
        if defaults := find_other_defaults(key):
            raise UserError(
                f'{where}.{key}={arguments[key]!r}: neither reader {section["reader"]!r} nor pairs '
                f'{section["pairs"]!r} has this argument: leave it out, or set it to its default '
                f'{defaults[0]!r}'
            )
    if unknown:
        raise UserError(
            f'unknown config key {where}.{unknown[0]}: reader {section["reader"]!r} has '
            f'{", ".join(of_reader)}; pairs {section["pairs"]!r} has {", ".join(of_pairs)}'
        )
    reader_arguments = {key: value for key, value in arguments.items() if key in of_reader}
    pair_arguments = {key: value for key, value in arguments.items() if key in of_pairs}
    if takes_tokenizer(rule.make_pairs):
        pair_arguments['tokenizer_path'] = tokenizer_path
    check_section(read, where, reader_arguments, ('path', 'name'))
    check_section(rule.make_pairs, where, pair_arguments, ('document',))
    try:
        READERS[section['reader']].check(**reader_arguments)
        rule.check(**pair_arguments)
    except UserError as error:
        raise UserError(f'{where}: {error}') from None
    return SourceRules(section['reader'], section['pairs'], reader_arguments, pair_arguments)


_SOURCE_KEYS = ('reader', 'path', 'pairs')


def _group_files(
    files: Sequence[PlannedFile], task_bytes: float
) -> Iterator[tuple[PlannedFile, ...]]:
    """Yields consecutive files of about `task_bytes` together."""
    group: list[PlannedFile] = []
    size = 0
    for file in files:
        if group and size + file.size > task_bytes:
            yield tuple(group)
            group = []
            size = 0
        group.append(file)
        size += file.size
    if group:
        yield tuple(group)
