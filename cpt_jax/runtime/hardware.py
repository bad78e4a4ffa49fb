"""Peak rates and memory of TPU and GPU chips, from data sheets and from compiler limits."""

import dataclasses

import jax

GB, GiB, GBIT = 10**9, 2**30, 10**9 / 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates and memory of one chip.

    Attributes:
      name: name in a topology, such as 'v5p' in 'v5p:4x4x4'.
      device_kind: `jax.Device.device_kind` of its devices.
      flops: peak dense bfloat16 FLOP/s; a multiplication and an addition count as two.
      hbm_bytes: memory in bytes, from the data sheet.
      hbm_limit: memory in bytes that the compiler lets a program use.
      hbm_rate: memory bandwidth, in bytes/s.
      devices: number of JAX devices per chip; each has an equal share of the rates and memory.
      link_rate: bandwidth of one link to a neighbouring chip of the slice, in bytes/s, one way; 0
        if not modelled.
      dimensions: number of dimensions of the torus; a chip has two links in each.
      dcn_rate: bandwidth to other slices, in bytes/s, one way; 0 if slices of it cannot be joined.
      topologies: shapes of the slices that are offered, smallest first.
      matrix_width: rows and columns of a matrix unit. The attention kernels that libtpu compiles
        for v5e need as many matrix instructions for heads of 64 as of 128 dimensions
        (benchmarks/attention_kernels.py), and for v6e and tpu7x as many for 64 as for 256.
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
    matrix_width: int = 128


def _gib_to_bytes(size: float) -> int:
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

# Source: docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, read in 2026. These pages
# give the inter-chip bandwidth of a chip as the sum over all its ports in both directions;
# `link_rate` is one port in one direction, half of a port's value. The memory limits are from the
# error messages of libtpu 0.0.42.1 and 0.0.52 for a program that needs more
# (tests/plan/hlo/test_memory.py checks them). The messages have two decimals, so a limit may be
# 0.01 GiB too low.
CHIPS = {
    chip.name: chip
    for chip in (
        # Two cores, each a device. Links: 656 Gb/s (v3) and 496 Gb/s (v2) over 4 ports, both
        # directions (doi.org/10.1145/3360307, table 3). Multislice begins with v4.
        Chip(
            'v2',
            'TPU v2',
            46e12,
            16 * GiB,
            2 * _gib_to_bytes(7.48),
            700 * GB,
            2,
            496 / 2 * GBIT,
            2,
            topologies=('2x2', '4x4', '8x8', '16x16'),
        ),
        Chip(
            'v3',
            'TPU v3',
            123e12,
            32 * GiB,
            2 * _gib_to_bytes(15.48),
            900 * GB,
            2,
            656 / 2 * GBIT,
            2,
            topologies=('2x2', '4x4', '8x8', '16x16', '32x32'),
        ),
        # 2,400 Gb/s one way over 6 ports (arXiv 2304.01433, table 4: 50 GB/s per link). The page
        # does not give its DCN bandwidth; this is the value of v5p.
        Chip(
            'v4',
            'TPU v4',
            275e12,
            32 * GiB,
            _gib_to_bytes(30.75),
            1228 * GB,
            1,
            50 * GB,
            3,
            50 * GBIT,
            _CUBES,
        ),
        # 400 GB/s over 4 ports; DCN: 6.4 Tb/s per pod of 256 chips.
        Chip(
            'v5e',
            'TPU v5 lite',
            197e12,
            16 * GiB,
            _gib_to_bytes(15.75),
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
            _gib_to_bytes(95.73),
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
            _gib_to_bytes(31.24),
            1638 * GB,
            1,
            100 * GB,
            2,
            100 * GBIT,
            _FLAT,
            256,
        ),
        # 1,200 GB/s over 6 ports; the memory limit is 94.74 GiB for each of the two devices.
        Chip(
            'tpu7x',
            'TPU7x',
            2307e12,
            192 * GiB,
            2 * _gib_to_bytes(94.74),
            7380 * GB,
            2,
            100 * GB,
            3,
            100 * GBIT,
            _CUBES,
            256,
        ),
        # Data sheet of the SXM module: 1,979 TFLOP/s with sparsity, half of that without. The
        # memory limit of a GPU is not known before a run, so `hbm_limit` is `hbm_bytes`.
        Chip('h100', 'NVIDIA H100 80GB HBM3', 989.5e12, 80 * GB, 80 * GB, 3350 * GB),
    )
}


def has_attention_kernel(device: jax.Device) -> bool:
    """Returns whether JAX's attention kernel for the device's platform runs on the device.

    The splash kernel multiplies bfloat16 matrices, which Mosaic refuses to compile for TPU v2 and
    v3. cuDNN's fused attention needs an Ampere GPU (compute capability 8.0) or a newer one.
    """
    if device.platform == 'gpu':
        # A number for NVIDIA, a name such as gfx942 for AMD.
        major = str(device.compute_capability).partition('.')[0]
        return major.isdecimal() and int(major) >= 8
    return device.device_kind not in ('TPU v2', 'TPU v3')


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip with this `jax.Device.device_kind`, or None if CHIPS does not have it."""
    return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)
