import pytest

from cpt_jax.prepare import finish


@pytest.fixture(scope='session', autouse=True)
def no_report():
    """Leaves the plots of report.html out, which take most of the time of a small preparation.

    test_report.py draws them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, 'write_data_set_report', lambda output, shards, summary: None)
        yield
