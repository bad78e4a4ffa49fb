import pytest

from cpt_jax.runtime.hardware import CHIPS, chip_of


@pytest.mark.parametrize('chip', CHIPS.values(), ids=lambda chip: chip.name)
def test_figures_hang_together(chip):
    assert chip_of(chip.device_kind) is chip
    # V5p: 95 GB on paper, 95.73 GiB handed out.
    assert 0.9 * chip.hbm_bytes < chip.hbm_limit <= 1.01 * chip.hbm_bytes
    assert 50 < chip.flops / chip.hbm_rate < 600  # operations a byte
    assert (
        bool(chip.topologies)
        == bool(chip.link_rate)
        == bool(chip.dcn_rate)
        == (chip.name != 'h100')
    )
    assert all(name.count('x') + 1 == chip.dimensions for name in chip.topologies)
    assert chip.link_rate == 0 or chip.dcn_rate < chip.link_rate


def test_inter_chip_bandwidth_is_that_of_the_data_sheets():
    """GB/s a chip, over all its links and both ways."""
    both_ways = {
        name: chip.link_rate * 2 * chip.dimensions * 2 / 1e9
        for name, chip in CHIPS.items()
        if chip.topologies
    }
    assert both_ways == {'v4': 600, 'v5e': 400, 'v5p': 1200, 'v6e': 800, 'tpu7x': 1200}


def test_what_is_not_known_is_none():
    assert chip_of('cpu') is None
