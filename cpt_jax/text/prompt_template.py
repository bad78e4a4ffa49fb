"""The words that a text stands in before a model reads it: PromptEOL and its relatives (arXiv
2307.16645).

Strings and order of steps are those of the paper's program, kongds/scaling_sentemb, evaluation.py
and ft_llm.py, which made its numbers; in print there is no space before the first colon, and quotes
are curly.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cpt_jax.runtime.errors import UserError

SLOT = '{text}'
_PAPERS_SLOT = '*sent_0*'  # in its form of a template, in which _ is a space

PROMPTEOL = 'This sentence : "{text}" means in one word:"'
# name -> template and pooling. The last two are what the paper compares with: nothing around a
# text.
REPRESENTATIONS = {
    'prompteol': (PROMPTEOL, 'eos'),
    'prompt': ('This sentence: "{text}" means', 'eos'),
    'last': (SLOT, 'eos'),
    'mean': (SLOT, 'mean'),
}
CLEAN_UP = (
    'words joined by single spaces',
    'a full stop behind a text that ends with none of . ? " \'',
    'every " is \'',
    'a ? at the end is a full stop',
)

# A sentence, and the one word that it means.
Demonstration = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The `prompt` section of a config, and what evaluation adds to it.

    Attributes:
      template: with the slot {text}; or as in the paper's files, with the slot *sent_0* and _ for
        spaces.
      text_tokens: ids of a text at most, cut before it stands in the template, as the paper trains;
        0: as many as the model takes.
      demonstrations: in front of it, each the same template around its sentence, filled in and
        closed; nothing stands between them.
      clean: whether texts are cleaned first (CLEAN_UP), as the paper evaluates, and does not train.
        A template that is the slot alone never does that: its program cleans none either.
    """

    template: str
    text_tokens: int = 0
    demonstrations: tuple[Demonstration, ...] = ()
    clean: bool = False

    def __post_init__(self):
        object.__setattr__(self, 'template', parse_template(self.template, 'prompt.template'))
        object.__setattr__(
            self,
            'demonstrations',
            tuple((sentence, word) for sentence, word in self.demonstrations),
        )
        object.__setattr__(self, 'clean', self.clean and self.template != SLOT)
        if self.text_tokens < 0:
            raise UserError(f'prompt.text_tokens={self.text_tokens}: must be 0 or more')
        if self.demonstrations and self.template == SLOT:
            raise UserError(
                f'--demonstration: there is no word to show where the template is {SLOT} alone'
            )

    def fill(self, text: str) -> str:
        """All that the model reads of a text."""
        before, after = self.template.split(SLOT)
        return (self._shown() + before + (clean_up(text) if self.clean else text) + after).strip()

    def _shown(self) -> str:
        """The demonstrations. Where the template opens a quotation mark for the word, it is
        closed.
        """
        before, after = self.template.split(SLOT)
        opened, closing = _around_the_word(after)
        return ''.join(
            f'{before}{sentence}{after}{opened}{word}{closing}'
            for sentence, word in self.demonstrations
        )

    def describe(self) -> dict[str, object]:
        """For results: all that its strings depend on."""
        return {
            'template': self.template,
            'demonstrations': [list(pair) for pair in self.demonstrations],
            'clean_up': list(CLEAN_UP) if self.clean else [],
        }


@dataclasses.dataclass(frozen=True)
class Representation:
    """How a program that loads a model turns texts into vectors.

    Attributes:
      name: 'own': as the model was trained (delimiters, a template, a pretrained directory's
        prompts) or one of REPRESENTATIONS.
      template: '': that of its name.
      demonstrations, clean: see Prompt; of a model that has its own template, they go with that.
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
        """Whether the model says what its texts stand in."""
        return self.name == 'own' and not self.template

    @property
    def pooling(self) -> str:
        """The pooling that goes with it; a template without a name goes with the last token."""
        return 'eos' if self.name == 'own' else REPRESENTATIONS[self.name][1]

    def prompt(self, own: str = '') -> Prompt:
        """What texts stand in; `own` is the template of a model that was trained with one."""
        template = self.template or (own if self.name == 'own' else REPRESENTATIONS[self.name][0])
        return Prompt(template, 0, self.demonstrations, self.clean)


OWN = Representation()


def configured(section: Mapping[str, Any]) -> Prompt | None:
    """The `prompt` section of a config: None where texts stand between delimiters.

    Raises:
      UserError: its template has no slot, or there is none for its text_tokens.
    """
    if section['template']:
        return Prompt(**section)
    if section.get('text_tokens'):
        raise UserError(
            f'prompt.text_tokens={section["text_tokens"]}: goes with prompt.template; of '
            f'delimiters, see data.max_tokens_x'
        )
    return None


def _around_the_word(after: str) -> tuple[str, str]:
    """What stands before and behind the word of a demonstration, in a template that ends with
    `after`.
    """
    return ('', '".') if after.endswith('"') else (' ', '.')


def parse_template(template: str, where: str) -> str:
    """A template with its slot as {text}, of either form.

    Raises:
      UserError: it has not exactly one slot; the message begins with `where`.
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
            f'{where}: {template!r} must have one {SLOT}, where a text goes (or *sent_0*, with _ '
            f'for spaces), as {PROMPTEOL!r}'
        )
    return template


def demonstrations_in(whole: str, template: str) -> tuple[Demonstration, ...] | None:
    """The demonstrations with which `template` is the whole one, which has its slot as {text}; None
    where there are none.
    """
    rest = whole
    found: list[Demonstration] = []
    before, after = template.split(SLOT)
    opened, closing = _around_the_word(after)
    one = re.compile(
        f'{re.escape(before)}(.+?){re.escape(after + opened)}(.+?){re.escape(closing)}'
    )
    while rest != template and (match := one.match(rest)):
        found.append((match[1], match[2]))
        rest = rest[match.end() :]
    return tuple(found) if found and rest == template else None


def parse_demonstration(given: str) -> Demonstration:
    """'A jockey riding a horse.=Equestrian' -> its sentence and its word; the last = counts. Raises
    UserError where a part is missing.
    """
    sentence, _, word = given.rpartition('=')
    if not sentence.strip() or not word.strip():
        raise UserError(
            f'--demonstration {given!r}: a sentence, = and a word are expected, as in "A jockey '
            f'riding a horse.=Equestrian"'
        )
    return sentence, word


def clean_up(text: str) -> str:
    """CLEAN_UP, step after step."""
    text = ' '.join(text.split())
    if text and text[-1] not in '.?"\'':
        text += '.'
    text = text.replace('"', "'")
    return text[:-1] + '.' if text.endswith('?') else text


def demonstrations_of(given: Sequence[str]) -> tuple[Demonstration, ...]:
    """Those of a flag that may be repeated."""
    return tuple(map(parse_demonstration, given))
