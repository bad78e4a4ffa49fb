"""What a chip can do at best: figures of its makers, and the memory that the compiler hands out."""

import dataclasses

GB, GiB, GBIT = 10**9, 2**30, 10**9 / 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; a rate is in units a second.

    Attributes:
      name: as in a topology, v5p of v5p:4x4x4.
      device_kind: what JAX calls it.
      flops: bfloat16 multiplications and additions, dense, at the peak.
      hbm_bytes: memory by the data sheet; `hbm_limit` is what a program may take of it.
      hbm_limit: what the compiler enforces.
      hbm_rate: bytes read or written.
      devices: JAX devices a chip; each has an equal share of all of the above.
      link_rate: bytes one way over one link to a neighbouring chip of the slice; 0: not modelled.
      dimensions: of the torus; two links each.
      dcn_rate: bytes one way to other slices.
      topologies: slices that are offered, smallest first.
    """

    name: str
    device_kind: str
    flops: float
    hbm_bytes: int
    hbm_limit: int
    hbm_rate: float
    devices: int = 1
    link_rate: float = 0.0
    dimensions: int = 0
    dcn_rate: float = 0.0
    topologies: tuple[str, ...] = ()


def _gib(size: float) -> int:
    return int(size * GiB)


_FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
    '2x2x1',
    '2x2x2',
    '2x2x4',
    '2x4x4',
    '4x4x4',
    '4x4x8',
    '4x8x8',
    '8x8x8',
    '8x8x16',
    '8x16x16',
    '16x16x16',
)

# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in 2026. Inter-chip bandwidth is given
# there in both directions and for all ports of a chip; a link has half of its port's. The limits of
# memory are those that libtpu 0.0.42.1 and 0.0.52 name when a program asks for more
# (tests/plan/test_memory.py asks again); they print two decimals, so the last digit may be 0.01 GiB
# too low.
CHIPS = {
    chip.name: chip
    for chip in (
        # 2,400 Gb/s one way over 6 ports (arXiv 2304.01433, table 4: 50 GB/s a link); its DCN is
        # that of v5p, which the page does not give.
        Chip(
            'v4',
            'TPU v4',
            275e12,
            32 * GiB,
            _gib(30.75),
            1228 * GB,
            1,
            50 * GB,
            3,
            50 * GBIT,
            _CUBES,
        ),
        # 400 GB/s over 4 ports; 6.4 Tb/s a pod of 256.
        Chip(
            'v5e',
            'TPU v5 lite',
            197e12,
            16 * GiB,
            _gib(15.75),
            819 * GB,
            1,
            50 * GB,
            2,
            6400 / 256 * GBIT,
            _FLAT,
        ),
        # 1,200 GB/s over 6 ports.
        Chip(
            'v5p',
            'TPU v5',
            459e12,
            95 * GiB,
            _gib(95.73),
            2765 * GB,
            1,
            100 * GB,
            3,
            50 * GBIT,
            (*_CUBES, '16x16x24'),
        ),
        # 800 GB/s over 4 ports.
        Chip(
            'v6e',
            'TPU v6 lite',
            918e12,
            32 * GiB,
            _gib(31.24),
            1638 * GB,
            1,
            100 * GB,
            2,
            100 * GBIT,
            _FLAT,
        ),
        # 1,200 GB/s over 6 ports; each of the two devices may take 94.74 GiB.
        Chip(
            'tpu7x',
            'TPU7x',
            2307e12,
            192 * GiB,
            2 * _gib(94.74),
            7380 * GB,
            2,
            100 * GB,
            3,
            100 * GBIT,
            _CUBES,
        ),
        # The SXM module's data sheet: 1,979 TFLOP/s with sparsity, half of it without. Not a TPU:
        # no limit is known before a run.
        Chip('h100', 'NVIDIA H100 80GB HBM3', 989.5e12, 80 * GB, 80 * GB, 3350 * GB),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so (`jax.Device.device_kind`), or None: its figures are not known
    here.
    """
    return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)
