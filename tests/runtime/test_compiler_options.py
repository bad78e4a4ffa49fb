import jax
import pytest

from cpt_jax.runtime.compiler_options import compile_with_options, parse_compiler_options
from cpt_jax.runtime.errors import UserError


def test_options_are_parsed():
    assert parse_compiler_options('') == {}
    assert parse_compiler_options('xla_a=98304,xla_b=true,xla_c=False, xla_d=x=y') == {
        'xla_a': '98304',
        'xla_b': True,
        'xla_c': False,
        'xla_d': 'x=y',
    }


@pytest.mark.parametrize('text', ['xla_a', 'xla_a=', '=1', 'xla_a=1,,xla_b=2'])
def test_malformed_options_are_refused(text):
    with pytest.raises(UserError, match='train.compiler_options=.*: must be NAME=VALUE'):
        parse_compiler_options(text)


def test_options_reach_the_compiler():
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    options = parse_compiler_options('xla_llvm_disable_expensive_passes=true')
    assert compile_with_options(lowered, options)(2.0) == 3.0
    with pytest.raises(UserError, match="No such compile option: 'xla_no_such_option'"):
        compile_with_options(lowered, {'xla_no_such_option': '1'})
    with pytest.raises(UserError, match='xla_cpu_parallel_codegen_split_count'):
        compile_with_options(lowered, {'xla_cpu_parallel_codegen_split_count': 'x'})
