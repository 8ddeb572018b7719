"""Imports follow the layers of `core/__init__.py`."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Package -> packages that it may import. "paper" are the modules at the top of core/.
MAY_IMPORT = {
    "config": set(),
    "runtime": {"runtime"},
    "formats": {"formats", "runtime", "config"},
    "media": {"media", "formats", "runtime", "config"},
    "paper": {"paper", "formats", "runtime", "config"},
    "reports": {"reports", "paper", "media", "formats", "runtime", "config"},
    "synthetic": {"synthetic", "media", "formats", "runtime", "config"},
    "detection": {"detection", "reports", "paper", "media", "formats", "runtime", "config"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "core").rglob("*.py"))}
SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("scripts/*.py")]


def imports(path: Path) -> set[str]:
    """Full names of all modules and objects that a file imports, at any level."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "paper"


def test_packages_import_lower_layers_only():
    for module, path in MODULES.items():
        for other in imports(path) & MODULES.keys() - {"core"}:
            assert package(other) in MAY_IMPORT[package(module)], f"{module} imports {other}"


def test_imports_are_not_circular():
    remaining = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    while free := [module for module, others in remaining.items() if not others & remaining.keys()]:
        remaining = {module: others for module, others in remaining.items() if module not in free}
    assert not remaining


def test_scripts_are_not_imported():
    scripts = {path.stem for path in SCRIPTS} | {"data", "scripts"}
    for path in [*SCRIPTS, *MODULES.values()]:
        assert not {name.split(".")[0] for name in imports(path)} & scripts, path


def test_every_test_named_in_the_robustness_page_exists():
    page = (ROOT / "docs" / "robustness.md").read_text()
    file, names = "", 0
    for match in re.finditer(r"`(test_\w+\.py)?(?:::)?([\w:]+)?`", page):
        file = match[1] or file
        if not file or not (match[1] or match[0].startswith("`::")):
            continue
        text = (ROOT / "tests" / file).read_text()
        for name in filter(None, (match[2] or "").split("::")):
            assert re.search(rf"\b(def|class) {name}\b", text), f"{file}::{match[2]}"
            names += 1
    assert names > 40
