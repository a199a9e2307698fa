"""The data card: README.md with the YAML header that the Hugging Face Hub and `datasets` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets_build.manifest import write_bytes_atomic

CARD_FILE = "README.md"

OWNERS = {
    "ntu": "NTU RGB+D belongs to the ROSE Lab, Nanyang Technological University: academic research "
    "only, no redistribution.",
    "nw-ucla": "The Northwestern-UCLA recordings belong to their authors and are for research.",
}


def write_card(folder: Path, record: dict[str, Any]) -> None:
    """Write README.md beside the parts.

    Args:
        folder: the data set's folder.
        record: the content of dataset.json.
    """
    write_bytes_atomic(folder / CARD_FILE, card_text(record).encode())


def card_text(record: dict[str, Any]) -> str:
    """The card of a data set record; a name with special characters is quoted for YAML."""
    counts, skeleton = record["counts"], record["skeleton"]
    paragraphs = [
        _header(record),
        f"# {record['name']}",
        f"{counts['num_rows']:,} skeleton clips with {counts['num_captions']:,} captions, "
        f"{len(record['classes'])} classes, joint layout {skeleton['name']} "
        f"({len(skeleton['joints'])} joints), made by `hoc build-dataset` from "
        f"{', '.join(source['name'] for source in record['sources']['skeletons'])} "
        f"({record['format']}).",
        _loading(record),
        _splits(counts["protocols"]),
        *_captions(record),
        f"Left out: {_left_out(counts['left_out'])} (left_out.parquet has each with its reason). "
        f"Fingerprint: `{record['fingerprint']}`; dataset.json holds sources, options and the hash "
        "of every file of data, and `hoc verify` checks them.",
        OWNERS.get(record["family"], "The terms of the original recordings apply."),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _header(record: dict[str, Any]) -> str:
    lines = [
        "---",
        f"pretty_name: {json.dumps(record['name'])}",
        "license: other",
        *(["language:", "- en"] if record["counts"]["num_captions"] else []),
        "tags:",
        "- skeleton-based-action-recognition",
        f"- {record['skeleton']['name']}",
        "size_categories:",
        f"- {_size_category(record['counts']['num_rows'])}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",  # the Hub wants a split name; ours come from the ids, see _splits
        "    path: part-*.arrow",
        "---",
    ]
    return "\n".join(lines)


def _size_category(num: int) -> str:
    """The Hub's word for a number of rows."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")]
    return next((word for bound, word in bounds if num < bound), "100K<n<1M")


def _loading(record: dict[str, Any]) -> str:
    skeleton = record["skeleton"]
    unit = "metres in the sensor's coordinates" if skeleton["joint_dims"] == 3 else "pixels"
    if record["format"] == "ctrgcn-npz":
        unit += ", relative to the middle of the spine of body 1 in its first frame"
    score = ", then a score" if skeleton["has_score"] else ""
    channels = skeleton["joint_dims"] + skeleton["has_score"]
    return (
        "```python\n"
        "import numpy as np\n"
        "from datasets import load_dataset\n\n"
        'rows = load_dataset("arrow", data_files="part-*.arrow", split="train")\n'
        "row = rows[0]\n"
        'joints = np.array(row["joints"], np.float32).reshape(\n'
        f'    row["num_bodies"], row["num_frames"], {len(skeleton["joints"])}, {channels})\n'
        "```\n\n"
        f"Joints are float32, {unit}{score}, at real length (no padding). Labels are 0-based."
    )


def _splits(protocols: list[dict[str, Any]]) -> str:
    text = "Training and test sets follow from the ids, so all rows carry one split name."
    if not protocols:
        return text
    lines = ["| protocol | train | test | exemplars | outside |", "|---|---|---|---|---|"]
    lines += [
        f"| {p['protocol']} | {p['num_train']:,} | {p['num_test']:,} | {p['num_exemplar']:,} "
        f"| {p['num_outside']:,} |"
        for p in protocols
    ]
    return text + "\n\n" + "\n".join(lines)


def _captions(record: dict[str, Any]) -> list[str]:
    counts = record["counts"]
    if not counts["num_captions"] and not counts["num_held_out_captions"]:
        return []
    by_prompt = ", ".join(f"{num:,} of prompt {name}" for name, num in counts["prompts"].items())
    text = f"Captions: {by_prompt or 'none in the rows'}."
    if record["options"]["hold_out"]:
        text += (
            f" Those of test samples under {', '.join(record['options']['hold_out'])} "
            f"({counts['num_held_out_captions']:,}) are kept apart in held-out-captions.parquet."
        )
    text += " Captions of a protocol's test samples must never reach anything that scores them."
    return [text]


def _left_out(left_out: dict[str, int]) -> str:
    return ", ".join(f"{num:,} {reason}" for reason, num in left_out.items()) or "nothing"
