"""Repeating a caption run from its manifest: the same settings, the same commit of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioning.plan import MADE_BY
from captioning.results import MANIFEST_FILE
from datasets_build.manifest import fingerprint, read_json


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a caption run, from its file or its folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is another kind of file, or was changed by hand.
    """
    if path.is_dir():
        path = path / MANIFEST_FILE
    manifest: dict[str, Any] = read_json(path, made_by=MADE_BY)
    if not isinstance(manifest, dict) or manifest.get("made_by") != MADE_BY:
        raise ValueError(f"{path} is not the manifest of a caption run; give OUT/manifest.json")
    if not {"config", "fingerprint", "parts"} <= manifest.keys():
        raise ValueError(f"{path} is damaged; only a whole manifest can be repeated")
    if "model" not in manifest["parts"]:
        raise ValueError(
            f"{path} is the manifest of captions taken from a text; run `hoc caption --from-text` "
            "with the files that it names"
        )
    if fingerprint(manifest["parts"]) != manifest["fingerprint"]:
        raise ValueError(f"{path} was changed: its parts do not give its fingerprint")
    return manifest


def settings_to_repeat(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with the commit that the hub had for its model then."""
    settings = dict(manifest["config"])
    revision = manifest["parts"]["model"].get("revision")
    return settings | ({"revision": revision} if revision else {})
