"""The first rows of public traces, shipped for a first try. LICENSES.md beside them has sources."""

from __future__ import annotations

from importlib import resources

#: Sample: its reader and its file.
SAMPLES = {
    "azure-code": ("azure", "azure-code.csv.gz"),
    "azure-conversation": ("azure", "azure-conversation.csv.gz"),
    "mooncake": ("mooncake", "mooncake.jsonl.gz"),
    "sharegpt": ("sharegpt", "sharegpt.csv.gz"),
}


def spec(name: str) -> str:
    """A sample as `reader:path`; KeyError for another name."""
    reader, file = SAMPLES[name]
    return f"{reader}:{resources.files('giusto.workload') / 'data' / file}"
