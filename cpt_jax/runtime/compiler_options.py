"""Options of XLA's compiler, given by the user."""

import jax

from cpt_jax.runtime.errors import UserError

# Value by name, as `jax.stages.Lowered.compile` takes them.
CompilerOptions = dict[str, str | bool]


def parse_compiler_options(text: str) -> CompilerOptions:
    """Returns the options in a text such as 'xla_tpu_scoped_vmem_limit_kib=98304,xla_a=true'.

    Raises:
      UserError: a part of the text is not NAME=VALUE.
    """
    options: CompilerOptions = {}
    for part in text.split(',') if text else []:
        name, sign, value = part.strip().partition('=')
        if not (name and sign and value):
            raise UserError(
                f'train.compiler_options={text!r}: must be NAME=VALUE,NAME=VALUE, without spaces'
            )
        options[name] = value
        if value.lower() in ('true', 'false'):
            options[name] = value.lower() == 'true'
    return options


def compile_with_options(
    lowered: jax.stages.Lowered, options: CompilerOptions
) -> jax.stages.Compiled:
    """Compiles a program.

    Raises:
      UserError: the compiler has no such option, or it cannot have this value.
    """
    try:
        return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if 'No such compile option' in str(error) or 'While setting option' in str(error):
            raise UserError(f'train.compiler_options: {error}') from error
        raise
