"""The errors of buckets and other stores, as lines for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

from cpt_jax.runtime.errors import UserError

# Packages that fsspec needs, by the scheme of a URL.
_PACKAGES = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'abfs': 'adlfs'}


@contextmanager
def explain_errors(name: str, url: str, done: str = 'read') -> Iterator[None]:
    """Turns the errors of stores into a UserError of one line.

    Each store has its own exceptions, so they are told apart by their text and code.

    Args:
      name: flag or key that the URL comes from; '' if there is none.
      url: the URL.
      done: what was done to it, 'read' or 'written'.
    """
    what = f'{name} {url}'.strip()
    try:
        yield
    except UserError:
        raise
    except ImportError:
        package = _PACKAGES.get(url.partition(':')[0], 'the fsspec package of this kind of URL')
        advice = ", or pip install 'cpt_jax[gcs]'" if package == 'gcsfs' else ''
        raise UserError(f'{what}: needs {package}: pip install {package}{advice}') from None
    except FileNotFoundError:
        raise UserError(f'{what}: no such file, folder or bucket') from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        code = str(getattr(error, 'code', ''))
        text = str(error)
        if code == '404':
            raise UserError(f'{what}: no such file, folder or bucket') from None
        if code == '401' or 'credentials' in text.lower() or 'Anonymous caller' in text:
            advice = 'log in with: gcloud auth application-default login'
        elif code == '403' or 'Forbidden' in text or isinstance(error, PermissionError):
            role = 'objectViewer' if done == 'read' else 'objectUser'
            advice = f'this account has no permission: ask for the role roles/storage.{role}'
        elif code == '429':
            advice = 'the store refuses so many requests: wait a minute and start again'
        else:
            advice = 'start again, or give a local path'
        raise UserError(f'{what}: cannot be {done} ({reason}): {advice}') from None
