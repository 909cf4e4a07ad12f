"""What is known of a GPU by its name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    peak_flops: float
    """Dense bfloat16 FLOP/s, from the vendor's data sheet."""
    memory_gib: float | None
    """What programs may use of its memory (GiB), about 2 % less than the data sheet says; None where the name stands
    for GPUs of several sizes."""


GPUS = {
    "B200": Gpu(2.25e15, 178),
    "GH200": Gpu(9.89e14, 94),
    "H200 NVL": Gpu(8.35e14, 139),
    "H200": Gpu(9.89e14, 139),
    "H100 PCIe": Gpu(7.56e14, 79),
    "H100 NVL": Gpu(8.35e14, 93),
    "H100": Gpu(9.89e14, 79),
    "A100 80G": Gpu(3.12e14, 79),
    "A100 80GB": Gpu(3.12e14, 79),
    "A100": Gpu(3.12e14, None),
    "L40S": Gpu(3.62e14, 44),
    "A10G": Gpu(7.0e13, 22),
    "L4": Gpu(1.21e14, 22),
    "MI300X": Gpu(1.307e15, 191),
}
"""The first whose words a device's name holds counts."""


def gpu_of(name: str) -> Gpu | None:
    """The GPU with this name, such as `NVIDIA A100-SXM4-80GB`; None where it is not known."""
    words = name.replace("-", " ").split()
    return next((gpu for known, gpu in GPUS.items() if set(known.split()) <= set(words)), None)
