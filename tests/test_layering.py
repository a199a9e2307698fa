"""House rules that a reader relies on: imports run one way, names resolve here, help is quick."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("captioning", "cli", "datasets_build", "training")
ALLOWED = {
    "datasets_build": {"datasets_build"},
    "captioning": {"captioning", "datasets_build"},
    "training": {"training", "datasets_build"},
    "cli": {"cli", "captioning", "training", "datasets_build"},
}
HEAVY = {"torch", "torchvision", "transformers", "accelerate", "datasets", "decord", "av",
         "pyarrow", "numpy", "sklearn", "matplotlib", "pydantic", "PIL"}  # fmt: skip


def _sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(tree: ast.AST, *, everywhere: bool) -> set[str]:
    nodes = ast.walk(tree) if everywhere else ast.iter_child_nodes(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = _imports(ast.parse(path.read_text()), everywhere=True)
    assert found & set(PACKAGES) <= ALLOWED[package]
    if package == "datasets_build":
        assert "torch" not in found


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda path: path.name)
def test_cli_imports_nothing_heavy_at_module_level(path: Path) -> None:
    assert not _imports(ast.parse(path.read_text()), everywhere=False) & HEAVY


def test_help_loads_no_heavy_module() -> None:
    # typer itself may load pydantic.
    heavy = HEAVY - {"pydantic"}
    program = f"import sys, cli.main; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_name_resolves_inside_the_repository(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve().is_relative_to(ROOT)


def test_no_module_carries_the_name_of_a_standard_or_installed_package() -> None:
    from importlib import metadata

    taken = set(sys.stdlib_module_names) | set(metadata.packages_distributions())
    clashes = {path.stem for path in _sources()} & taken - {"__init__", "__main__"} - set(PACKAGES)
    assert not clashes


def test_lock_file_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--" not in text
