"""What a conversion did, for the caller to print."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ConversionReport:
    """Account of one conversion.

    Attributes:
        kind: What the source was, for example ``official-moai``.
        source: The source folder, or the hub name and commit it was fetched from.
        output: The folder written.
        num_source_tensors: Tensors read; every one was consumed.
        num_tensors: Tensors written.
        num_parameters: Parameters written.
        num_bytes: Bytes of weights written.
        dtype: Dtype most parameters are stored in.
        families: Parameters by part of the model.
        files: Weight files written.
        sizes: The sizes that were found, by name.
        notes: Things worth knowing, one sentence each.
    """

    kind: str
    source: Path | str
    output: Path
    num_source_tensors: int
    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtype: str
    families: dict[str, int]
    files: tuple[str, ...]
    sizes: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        fields = asdict(self)
        return fields | {
            "source": str(self.source),
            "output": str(self.output),
            "files": list(self.files),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Several lines for a terminal."""
        lines = [
            f"{self.kind}: {self.source} -> {self.output}",
            f"  {self.num_source_tensors} tensors read, all consumed; {self.num_tensors} written "
            f"({self.num_parameters:,} parameters, {self.num_bytes / 1e6:,.1f} MB, {self.dtype}, "
            f"{len(self.files)} file(s))",
        ]
        lines += [f"  {name:<24}{count:>16,}" for name, count in self.families.items()]
        lines += [f"  {name}: {value}" for name, value in self.sizes.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
