"""Prompt templates around a text: PromptEOL and related representations (arXiv 2307.16645).

Strings and the order of steps are those of the program that produced the paper's numbers
(kongds/scaling_sentemb, evaluation.py and ft_llm.py). The printed template differs: it has no space
before the first colon, and its quotes are curly.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cpt_jax.runtime.errors import UserError

SLOT = '{text}'
_PAPERS_SLOT = '*sent_0*'  # the slot in the paper's template files, in which _ is a space

PROMPTEOL = 'This sentence : "{text}" means in one word:"'
# Name -> (template, pooling). The last two are the paper's baselines: the text without a template.
REPRESENTATIONS = {
    'prompteol': (PROMPTEOL, 'eos'),
    'prompt': ('This sentence: "{text}" means', 'eos'),
    'last': (SLOT, 'eos'),
    'mean': (SLOT, 'mean'),
}
# This text is stored in results, so it must not change.
CLEAN_UP = (
    'words joined by single spaces',
    'a full stop behind a text that ends with none of . ? " \'',
    'every " is \'',
    'a ? at the end is a full stop',
)

# What a text in a template begins with. tokenizer: the special tokens that the tokenizer of the
# pretrained model itself puts before texts, as in transformers. always: the model's BOS, if there
# are none. auto: tokenizer for a new run.
BEGIN_TOKENS = ('auto', 'tokenizer', 'always')

# (sentence, the one word that sums it up).
Demonstration = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The `prompt` section of a config, with the demonstrations and the cleaning of evaluation.

    Attributes:
      template: template with the slot {text}, or in the form of the paper's files, with the slot
        *sent_0* and _ for spaces.
      text_tokens: maximum number of tokens of a text. A longer text is truncated before it is put
        into the template, as in the paper's training. 0: no limit but the model's.
      demonstrations: examples put before the prompt. Each is the same template, filled with its
        sentence and completed with its word; there is no separator between them.
      clean: whether texts are cleaned first (see CLEAN_UP), as in the paper's evaluation but not in
        its training. It has no effect if the template is only the slot, as in the paper's program.
      begin_token: one of BEGIN_TOKENS: which ids a run puts before the template. It selects the ids
        of `PromptTokenizer` and changes no string, so it is no part of the repr, which fingerprints
        hash.
    """

    template: str
    text_tokens: int = 0
    demonstrations: tuple[Demonstration, ...] = ()
    clean: bool = False
    begin_token: str = dataclasses.field(default='always', repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, 'template', parse_template(self.template, 'prompt.template'))
        object.__setattr__(
            self,
            'demonstrations',
            tuple((sentence, word) for sentence, word in self.demonstrations),
        )
        object.__setattr__(self, 'clean', self.clean and self.template != SLOT)
        check_begin_token(self.begin_token, 'prompt.begin_token')
        if self.text_tokens < 0:
            raise UserError(f'prompt.text_tokens={self.text_tokens}: must be 0 or more')
        if self.demonstrations and self.template == SLOT:
            raise UserError(
                f'--demonstration: the template {SLOT} has no place for the word of a '
                f'demonstration; remove --demonstration or choose another template'
            )

    def fill(self, text: str) -> str:
        """Returns the whole string that the model reads for a text."""
        before, after = self.template.split(SLOT)
        text = clean_up(text) if self.clean else text
        return (self._format_demonstrations() + before + text + after).strip()

    def _format_demonstrations(self) -> str:
        before, after = self.template.split(SLOT)
        opening, closing = _get_word_delimiters(after)
        return ''.join(
            f'{before}{sentence}{after}{opening}{word}{closing}'
            for sentence, word in self.demonstrations
        )

    def describe(self) -> dict[str, object]:
        """Returns the settings that filled strings depend on, as plain values for results."""
        return {
            'template': self.template,
            'demonstrations': [list(pair) for pair in self.demonstrations],
            'clean_up': list(CLEAN_UP) if self.clean else [],
        }


@dataclasses.dataclass(frozen=True)
class Representation:
    """The template and pooling that turn texts into vectors when a model is loaded.

    Attributes:
      name: 'own' for the representation that the model was trained with (delimiters, a template, or
        a pretrained directory's prompts), or a key of REPRESENTATIONS.
      template: template to use; '': the template of `name`.
      demonstrations: see Prompt; they can also be added to a model's own template.
      clean: see Prompt; also applies to a model's own template.
    """

    name: str = 'own'
    template: str = ''
    demonstrations: tuple[Demonstration, ...] = ()
    clean: bool = False

    def __post_init__(self):
        if self.name not in ('own', *REPRESENTATIONS):
            raise UserError(
                f'--representation {self.name}: choose one of own, {", ".join(REPRESENTATIONS)}'
            )
        if self.template:
            parse_template(self.template, '--template')

    @property
    def is_own(self) -> bool:
        """Whether the model's own template, delimiters or prompts are used."""
        return self.name == 'own' and not self.template

    @property
    def pooling(self) -> str:
        """The pooling of this representation; 'eos' for a template without a name."""
        return 'eos' if self.name == 'own' else REPRESENTATIONS[self.name][1]

    def make_prompt(self, own_template: str = '') -> Prompt:
        """Returns the prompt for texts.

        Args:
          own_template: template that the model was trained with, used if `is_own`.
        """
        template = self.template
        if not template:
            template = own_template if self.name == 'own' else REPRESENTATIONS[self.name][0]
        return Prompt(template, 0, self.demonstrations, self.clean)


OWN_REPRESENTATION = Representation()


def check_begin_token(value: str, where: str) -> None:
    """Raises UserError if a value is not in BEGIN_TOKENS; `where` is its flag or key."""
    if value not in BEGIN_TOKENS:
        raise UserError(f'{where}={value!r}: choose one of {", ".join(BEGIN_TOKENS)}')


def parse_prompt_section(section: Mapping[str, Any]) -> Prompt | None:
    """Returns the prompt of a config's `prompt` section, or None if texts have delimiters instead.

    Raises:
      UserError: the template has no slot, or text_tokens is set without a template.
    """
    if section['template']:
        return Prompt(**section)
    if section.get('text_tokens'):
        raise UserError(
            f'prompt.text_tokens={section["text_tokens"]}: goes with prompt.template; to limit '
            f'texts between delimiters, set data.max_tokens_x and data.max_tokens_y'
        )
    return None


def _get_word_delimiters(after: str) -> tuple[str, str]:
    """Returns the strings before and after the word of a demonstration.

    If the template opens a quotation mark for the word, the mark is closed after it.

    Args:
      after: the part of the template after the slot.
    """
    return ('', '".') if after.endswith('"') else (' ', '.')


def parse_template(template: str, where: str) -> str:
    """Returns a template of either form with {text} as its slot.

    Args:
      template: template with the slot {text}, or in the form of the paper's files.
      where: flag, key or file:line of the template, for the message.

    Raises:
      UserError: the template does not have exactly one slot.
    """
    if _PAPERS_SLOT in template:
        template = (
            template.replace('*sep+*', '')
            .replace('*cls*', '')
            .replace(_PAPERS_SLOT, SLOT)
            .replace('_', ' ')
        )
    if template.count(SLOT) != 1:
        raise UserError(
            f'{where}: {template!r} must have one {SLOT} where the text goes (or *sent_0*, with _ '
            f'for spaces), as in {PROMPTEOL!r}'
        )
    return template


def find_demonstrations(whole: str, template: str) -> tuple[Demonstration, ...] | None:
    """Returns the demonstrations in `whole`: a template that is demonstrations plus `template`.

    Returns None if `whole` does not have that form or has no demonstration. Both arguments have
    {text} as their slot.
    """
    rest = whole
    found: list[Demonstration] = []
    before, after = template.split(SLOT)
    opening, closing = _get_word_delimiters(after)
    demonstration = re.compile(
        f'{re.escape(before)}(.+?){re.escape(after + opening)}(.+?){re.escape(closing)}'
    )
    while rest != template and (match := demonstration.match(rest)):
        found.append((match[1], match[2]))
        rest = rest[match.end() :]
    return tuple(found) if found and rest == template else None


def parse_demonstration(given: str) -> Demonstration:
    """Returns (sentence, word) of a string such as 'A jockey riding a horse.=Equestrian'.

    The last = separates them.

    Raises:
      UserError: the sentence or the word is missing.
    """
    sentence, _, word = given.rpartition('=')
    if not sentence.strip() or not word.strip():
        raise UserError(
            f'--demonstration {given!r}: expected a sentence, = and a word, as in "A jockey riding '
            f'a horse.=Equestrian"'
        )
    return sentence, word


def clean_up(text: str) -> str:
    """Returns the text after the steps of CLEAN_UP, in that order."""
    text = ' '.join(text.split())
    if text and text[-1] not in '.?"\'':
        text += '.'
    text = text.replace('"', "'")
    return text[:-1] + '.' if text.endswith('?') else text


def parse_demonstrations(given: Sequence[str]) -> tuple[Demonstration, ...]:
    """Returns the (sentence, word) of each value of a repeated flag."""
    return tuple(map(parse_demonstration, given))
