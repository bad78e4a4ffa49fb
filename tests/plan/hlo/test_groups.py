import pytest

from cpt_jax.plan.hlo.groups import parse_replica_groups
from cpt_jax.plan.hlo.program import HloError


@pytest.mark.parametrize(
    ('notation', 'expected'),
    [
        ('replica_groups={{0,1},{2,3}}', ((0, 1), (2, 3))),
        ('replica_groups={}', ((0, 1, 2, 3),)),
        ('channel_id=3', ((0, 1, 2, 3),)),
        ('channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}', ((0, 1), (2, 3))),
        ('replica_groups=[2,2]<=[2,2]T(1,0)', ((0, 2), (1, 3))),
        ('replica_groups=[4,2]<=[2,2,2]T(1,0,2)', ((0, 1), (4, 5), (2, 3), (6, 7))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=2]{'b','a'}", ((0, 2, 1, 3),)),
        ("replica_groups=mesh['a'=4,'b'=1] {'a'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", ((3, 2), (1, 0))),
        ('source_target_pairs={{0,1},{1,2},{2,0}}', ((0, 1), (1, 2), (2, 0))),
    ],
)
def test_every_notation_is_parsed(notation, expected):
    assert parse_replica_groups(notation, 4) == expected


def test_unknown_notation_is_an_error():
    with pytest.raises(HloError, match='replica groups: <0,1>'):
        parse_replica_groups('replica_groups=<0,1>', 2)
