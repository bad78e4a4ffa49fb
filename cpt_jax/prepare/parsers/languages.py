"""The programming languages whose functions are found, with their rules in CodeSearchNet."""

import functools
import keyword
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from cpt_jax.prepare.parsers import go, java, javascript, php, python, ruby
from cpt_jax.prepare.parsers.nodes import FoundFunction
from cpt_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

# Reserved words, which CodeSearchNet leaves out when it compares functions (dpu_utils 0.6).
_GO_WORDS = """
    break case chan const continue default defer else fallthrough for func go goto if import
    interface map package range return select struct switch type var
"""
_JAVA_WORDS = """
    abstract assert boolean break byte case catch char class const continue default do double else
    enum extends final finally float for goto if implements import instanceof int interface long
    native new package private protected public return short static strictfp super switch
    synchronized this throw throws transient try var void volatile while
"""
_JAVASCRIPT_WORDS = """
    break case catch class const continue debugger default delete do else enum export extends
    finally for function if implements import in instanceof interface let new package private
    protected public return static super switch this throw try typeof var void while with yield
"""
_PHP_WORDS = """
    abstract and array break callable case catch class clone const continue declare default do echo
    else elseif enddeclare endfor endforeach endif endswitch endwhile extends final finally for
    foreach function global goto if implements include include_once instanceof insteadof interface
    namespace new or print private protected public require require_once return static switch throw
    trait try unset use var while xor yield
"""
_RUBY_WORDS = """
    alias and begin break case class def defined? do else elsif end ensure for if in module next nil
    not or redo rescue retry return self super then undef unless until when while yield
"""


class CodeLanguage(NamedTuple):
    """A programming language.

    Attributes:
      suffixes: suffixes of its files.
      grammar: module with the tree-sitter grammar.
      function: name of the function of that module that returns the grammar.
      find_functions: function that yields the functions of a file.
      excluded_paths: parts of paths, in lower case, whose files are left out.
      excluded_names: names of functions that are left out: constructors and what every class has.
      reserved_words: words that do not count when functions are compared.
    """

    suffixes: tuple[str, ...]
    grammar: str
    function: str
    find_functions: Callable[['Node', bytes, str], Iterator[FoundFunction]]
    excluded_paths: tuple[str, ...]
    excluded_names: frozenset[str]
    reserved_words: frozenset[str]


def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())


LANGUAGES = {
    'go': CodeLanguage(
        ('.go',),
        'tree_sitter_go',
        'language',
        go.find_go_functions,
        ('test', 'vendor'),
        frozenset(),
        _split(_GO_WORDS),
    ),
    'java': CodeLanguage(
        ('.java',),
        'tree_sitter_java',
        'language',
        java.find_java_functions,
        ('test',),
        _split('toString hashCode equals finalize notify notifyAll clone'),
        _split(_JAVA_WORDS),
    ),
    'javascript': CodeLanguage(
        ('.js', '.mjs', '.cjs', '.jsx'),
        'tree_sitter_javascript',
        'language',
        javascript.find_javascript_functions,
        ('test', 'node_modules'),
        _split('toString toLocaleString valueOf'),
        _split(_JAVASCRIPT_WORDS),
    ),
    'php': CodeLanguage(
        ('.php',),
        'tree_sitter_php',
        'language_php',
        php.find_php_functions,
        ('test',),
        _split(
            '__construct __destruct __call __callStatic __get __set __isset __unset __sleep '
            '__wakeup __toString __invoke __set_state __clone __debugInfo __serialize __unserialize'
        ),
        _split(_PHP_WORDS),
    ),
    'python': CodeLanguage(
        ('.py',),
        'tree_sitter_python',
        'language',
        python.find_python_functions,
        ('test',),
        frozenset(),
        frozenset(keyword.kwlist),
    ),
    'ruby': CodeLanguage(
        ('.rb',),
        'tree_sitter_ruby',
        'language',
        ruby.find_ruby_functions,
        ('test', 'vendor'),
        _split(
            'initialize to_text display dup clone equal? == <=> === <= < > >= between? eql? hash'
        ),
        _split(_RUBY_WORDS),
    ),
}


def find_language(path: str) -> str:
    """Returns the language of a file by its suffix; '' if it is none of LANGUAGES."""
    suffix = PurePath(path).suffix.lower()
    return next((name for name, value in LANGUAGES.items() if suffix in value.suffixes), '')


@functools.cache
def load_parser(language: str) -> 'Parser':
    """Returns the parser of a language.

    Raises:
      UserError: tree-sitter or the grammar is not installed.
    """
    try:
        from tree_sitter import Language, Parser

        grammar = import_module(LANGUAGES[language].grammar)
    except ImportError as error:
        raise UserError(
            f"functions of {language} need {error.name}: pip install 'cpt_jax[prepare]', or in a "
            f"checkout pip install -e '.[prepare]'"
        ) from None
    return Parser(Language(getattr(grammar, LANGUAGES[language].function)()))
