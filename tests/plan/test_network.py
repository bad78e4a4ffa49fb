import pytest

from cpt_jax.plan.hlo.collectives import CollectiveSite
from cpt_jax.plan.network import DevicePosition, compute_network_seconds
from cpt_jax.runtime.hardware import CHIPS

V5P = CHIPS['v5p']
LINK, DCN = V5P.link_rate, V5P.dcn_rate
# A 4 x 4 torus, numbered in row-major order.
TORUS = [DevicePosition(0, (i // 4, i % 4, 0)) for i in range(16)]
ALL = (tuple(range(16)),)
LINES = tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(4))
PAIRS = tuple((2 * i, 2 * i + 1) for i in range(8))


def site(
    kind: str, groups=ALL, times: int = 1, summed: bool = False, size: int = 1600
) -> CollectiveSite:
    return CollectiveSite(kind, summed, False, size, times, 0, groups, len(groups[0]), False)


@pytest.mark.parametrize(
    ('kind', 'groups', 'received', 'links'),
    [
        ('all-gather', ALL, 1600 * 15 / 16, 4),
        ('reduce-scatter', ALL, 1600 * 15 / 16, 4),
        ('all-to-all', ALL, 1600 * 15 / 16, 4),
        ('all-reduce', ALL, 2 * 1600 * 15 / 16, 4),
        ('all-reduce', LINES, 2 * 1600 * 3 / 4, 2),
        ('all-reduce', PAIRS, 2 * 1600 * 1 / 2, 1),
        ('collective-permute', ((0, 1), (1, 2), (2, 3), (3, 0)), 1600, 1),
        ('collective-permute', ((0, 0), (1, 1)), 0, 1),
    ],
)
def test_time_is_received_bytes_over_the_rate_of_the_groups_links(kind, groups, received, links):
    assert compute_network_seconds([site(kind, groups)], TORUS, V5P) == pytest.approx(
        received / links / LINK
    )


def test_executions_add_up_and_summed_gathers_count_twice():
    one = compute_network_seconds([site('all-gather')], TORUS, V5P)
    assert compute_network_seconds([site('all-gather', times=7)], TORUS, V5P) == pytest.approx(
        7 * one
    )
    assert compute_network_seconds([site('all-gather', summed=True)], TORUS, V5P) == pytest.approx(
        2 * one
    )
    assert compute_network_seconds([], TORUS, V5P) == 0


def test_collectives_on_different_links_overlap():
    columns = tuple(tuple(range(i, 16, 4)) for i in range(4))
    rows_only = compute_network_seconds([site('all-gather', LINES)], TORUS, V5P)
    assert compute_network_seconds(
        [site('all-gather', LINES), site('all-gather', columns)], TORUS, V5P
    ) == pytest.approx(rows_only)
    # With a third one over both dimensions: 2 x 1200 and 1500 bytes over four links.
    three = [site('all-gather', LINES), site('all-gather', columns), site('all-gather')]
    assert compute_network_seconds(three, TORUS, V5P) == pytest.approx(
        (1200 + 1200 + 1500) / 4 / LINK
    )


def test_devices_of_a_chip_share_what_their_group_receives():
    """Four chips in a line have two devices each. If both devices are in one group, the chip
    receives the parts of other chips once; if they are in two groups, once for each group.
    """
    places = [DevicePosition(0, (i // 2, 0, 0)) for i in range(8)]
    together = site('all-gather', (tuple(range(8)),))
    assert compute_network_seconds([together], places, V5P) == pytest.approx(
        1600 * 3 / 4 / 2 / LINK
    )
    apart = site('all-gather', ((0, 2, 4, 6), (1, 3, 5, 7)))
    assert compute_network_seconds([apart], places, V5P) == pytest.approx(
        2 * 1600 * 3 / 4 / 2 / LINK
    )
    assert (
        compute_network_seconds([site('all-gather', ((0, 1), (2, 3), (4, 5), (6, 7)))], places, V5P)
        == 0
    )


def test_each_chip_receives_a_fraction_of_the_other_slices_data():
    """In two slices of eight chips, a chip receives an eighth of the other slice's data over the
    data-center network, and the rest from its own slice.
    """
    places = [DevicePosition(i // 8, (i % 8 // 4, i % 4, 0)) for i in range(16)]
    between, within = 1600 / 2 / 8, 1600 * 15 / 16 - 1600 / 2 / 8
    assert compute_network_seconds([site('all-gather')], places, V5P) == pytest.approx(
        max(between / DCN, within / 3 / LINK)
    )
    assert between / DCN > within / 3 / LINK
    sent_by_hosts = CollectiveSite('all-reduce', False, True, 1000, 3, 0, (), 2, True)
    assert compute_network_seconds([sent_by_hosts], places, V5P) == pytest.approx(3 * 1000 / DCN)
