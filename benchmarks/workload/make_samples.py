"""Cut the shipped samples from the public traces: the first rows of each, as they are.

    python benchmarks/workload/make_samples.py [DATA]

DATA holds traces/ (by default GIUSTO_DATA or ../shared/data). Sources and licences are in
src/giusto/workload/data/LICENSES.md.
"""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "src" / "giusto" / "workload" / "data"
#: Sample: the trace it is cut from, and rows (a header counts as one).
CUTS = {
    "azure-code.csv.gz": ("azure2023_code.csv.gz", 601),
    "azure-conversation.csv.gz": ("azure2023_conv.csv.gz", 601),
    "sharegpt.csv.gz": ("sharegpt_lengths.csv.gz", 4001),
    "mooncake.jsonl.gz": ("mooncake_conversation.jsonl.gz", 200),
}


def main() -> None:
    default = Path(os.environ.get("GIUSTO_DATA", ROOT.parent / "shared" / "data"))
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    for name, (source, rows) in CUTS.items():
        lines = gzip.decompress((data / "traces" / source).read_bytes()).splitlines(keepends=True)
        packed = gzip.compress(b"".join(lines[:rows]), mtime=0)
        (TARGET / name).write_bytes(packed)
        print(f"{name}: {rows} rows, {len(packed):,} bytes")


if __name__ == "__main__":
    main()
