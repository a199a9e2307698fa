"""The data card: README.md with the YAML header that the Hugging Face Hub and `datasets` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets_build.manifest import write_bytes_atomic


def write_card(folder: Path, record: dict[str, Any]) -> None:
    """Write README.md beside the parts.

    Args:
        folder: the data set's folder.
        record: the content of dataset.json.
    """
    write_bytes_atomic(folder / "README.md", card_text(record).encode())


def card_text(record: dict[str, Any]) -> str:
    """The card of a data set record; a name with special characters is quoted for YAML."""
    counts = record["counts"]
    lines = [
        "---",
        f"pretty_name: {json.dumps(record['name'])}",
        "tags:",
        "- skeleton-based-action-recognition",
        f"- {record['skeleton']}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",  # the Hub wants a split name; ours come from the ids, see below
        "    path: part-*.arrow",
        "---",
        "",
        f"# {record['name']}",
        "",
        f"{counts['num_rows']} clips with {counts['num_captions']} captions, "
        f"{len(record['classes'])} classes, skeleton layout {record['skeleton']} "
        f"({record['num_joints']} joints), made by `hoc build-dataset` from "
        f"{record['format']} files.",
        "",
        "A row's `joints` are float32 metres in the sensor's coordinates, shape (num_bodies, "
        f"num_frames, {record['num_joints']}, {record['joint_dims']}) flattened in C order, at "
        "real length. Train and test sets follow from the ids, so all rows have one split name.",
        "",
    ]
    if counts["protocols"]:
        lines += ["| protocol | train | test | exemplars | outside |", "|---|---|---|---|---|"]
        lines += [
            f"| {p['protocol']} | {p['num_train']} | {p['num_test']} | {p['num_exemplar']} "
            f"| {p['num_outside']} |"
            for p in counts["protocols"]
        ]
        lines.append("")
    left_out = ", ".join(f"{num} {reason}" for reason, num in counts["left_out"].items())
    lines += [
        f"Left out: {left_out or 'nothing'} (left_out.parquet). "
        f"Fingerprint: `{record['fingerprint']}`.",
        "",
        "The terms of the original recordings apply; NTU RGB+D and Northwestern-UCLA are for "
        "academic research.",
        "",
    ]
    return "\n".join(lines)
