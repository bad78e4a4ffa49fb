import pytest

from cpt_jax.runtime.hardware import CHIPS, find_chip


@pytest.mark.parametrize('chip', CHIPS.values(), ids=lambda chip: chip.name)
def test_chip_values_are_consistent(chip):
    assert find_chip(chip.device_kind) is chip
    # The limit of v5p, 95.73 GiB, is above the 95 GiB of its data sheet.
    assert 0.9 * chip.hbm_bytes < chip.hbm_limit <= 1.01 * chip.hbm_bytes
    assert 50 < chip.flops / chip.hbm_rate < 600  # FLOPs per byte
    assert bool(chip.topologies) == bool(chip.link_rate) == (chip.name != 'h100')
    assert bool(chip.dcn_rate) == (chip.name not in ('h100', 'v2', 'v3'))
    assert all(name.count('x') + 1 == chip.dimensions for name in chip.topologies)
    assert chip.link_rate == 0 or chip.dcn_rate < chip.link_rate


def test_inter_chip_bandwidth_is_as_in_the_data_sheets():
    """Compares GB/s per chip, summed over all links in both directions."""
    both_ways = {
        name: chip.link_rate * 2 * chip.dimensions * 2 / 1e9
        for name, chip in CHIPS.items()
        if chip.topologies
    }
    assert both_ways == {
        'v2': 4 * 496 / 8,
        'v3': 4 * 656 / 8,
        'v4': 600,
        'v5e': 400,
        'v5p': 1200,
        'v6e': 800,
        'tpu7x': 1200,
    }


def test_unknown_device_kind_has_no_chip():
    assert find_chip('cpu') is None
