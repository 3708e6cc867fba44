"""Write the shipped profile that comes from data sheets.

    python benchmarks/profiles/roofline_profiles.py

The model is Meta's, as its config.json has it; the GPU NVIDIA's A100 80 GB SXM by its data sheet
(dense bf16), behind PCIe 4.0 x16 at 25 GB/s, assumed. `roofline_error.py` compares such a profile
with measured kernels of other GPUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from giusto.profiles.roofline import Architecture, Hardware, roofline

FOLDER = Path(__file__).parents[2] / "src" / "giusto" / "profiles" / "data"
NAME = "llama-3.1-8b-a100"
LLAMA = Architecture("Llama-3.1-8B-Instruct, bf16", 8.03e9, 32, 32, 8, 128)
A100 = Hardware("NVIDIA A100 80 GB", flops=312e12, bandwidth=2.039e12, memory=80 * 2**30, link=25e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    path = parser.parse_args().folder / f"{NAME}.json"
    roofline(NAME, LLAMA, A100).write(path)
    print(path)


if __name__ == "__main__":
    main()
