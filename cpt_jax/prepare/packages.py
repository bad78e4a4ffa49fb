"""The packages of the extra `prepare`."""

from importlib.util import find_spec

from cpt_jax.runtime.errors import UserError


def require_package(name: str, user: str) -> None:
    """Raises UserError if a package is not installed.

    Args:
      name: name of the package.
      user: program, key or reader that needs it.
    """
    if find_spec(name) is None:
        raise UserError(
            f"{user} needs {name}: pip install 'cpt_jax[prepare]', or in a checkout pip install -e "
            f"'.[prepare]'"
        )
