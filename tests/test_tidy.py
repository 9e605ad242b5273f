"""The judge of size and form: what ruff, mypy and import-linter do not look at. Small modules and functions, true documents."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_OURS = {".venv", ".relay", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "build"}
PACKED = {".whl", ".zip", ".gz", ".tgz", ".tar"}
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
SPACE_BETWEEN = re.compile(r"\s+")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MACHINE_PATH = re.compile(r"files\.pythonhosted|(?<![\w.-])/(?:root|farm|work|home/\w+)/\w")


@cache
def tracked() -> list[Path]:
    """What git knows or would take; in an unpacked archive, every file."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [str(path) for path in paths if not any(part in NOT_OURS for part in path.parts)]
    return [path for name in names if (path := ROOT / name).is_file()]


def sources(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", sources("services", "libs", "tests", "bench"), ids=name_of)
def test_modules_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    for node in functions(ast.parse(text)):
        assert node.end_lineno is not None
        assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", sources("services", "libs", "bench", "tests"), ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", sources("services", "libs"), ids=name_of)
def test_public_functions_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text())
    places: list[ast.AST] = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for place in places:
        if isinstance(place, ast.ClassDef) and place.name.startswith("_"):
            continue
        for node in ast.iter_child_nodes(place):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_obvious(node, place):
                assert ast.get_docstring(node), f"{node.name} has no docstring"


def _is_obvious(node: ast.FunctionDef | ast.AsyncFunctionDef, place: ast.AST) -> bool:
    """Private ones, and methods whose contract is the base class's."""
    return node.name.startswith("_") or (isinstance(place, ast.ClassDef) and bool(place.bases))


def test_every_module_has_a_test() -> None:
    """By its name, or by an import; or it is a part of a module that has one, such as a resource of an application."""
    tests = "\n".join(path.read_text() for path in sources("tests"))
    named = {path.stem.removeprefix("test_") for path in sources("tests")}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources("services", "libs")}
    tested = {module for module in modules if module.rpartition(".")[2] in named or _is_imported(module, tests)}
    parts = "\n".join(modules[module].read_text() for module in tested)
    for module in modules.keys() - tested:
        is_entry = module.endswith(("__init__", "__main__"))
        assert is_entry or _is_imported(module, parts), f"no test knows {module}"


def _is_imported(module: str, text: str) -> bool:
    package, _, name = module.rpartition(".")
    names = rf"(?:\([^)]*|[^\n(]*)\b{name}\b"
    return bool(re.search(rf"from {re.escape(package)} import {names}|{re.escape(module)}\b", text))


SCRIPTS = [path for path in tracked() if path.suffix == ".lua" and path.parent.name != "include"]


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_have_a_header(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("--"))
    for word in ("KEYS", "ARGV", "Reply", "Example"):
        assert word in header


def test_no_environment_is_tracked() -> None:
    """A link named .venv that is committed replaces the environment of whoever merges it."""
    assert not [name_of(path) for path in tracked() if path.relative_to(ROOT).parts[0] in NOT_OURS]


def test_no_package_is_tracked() -> None:
    """A download that somebody's tools have left is committed with the next `git add --all`."""
    assert not [name_of(path) for path in tracked() if path.suffix in PACKED]


def test_nothing_names_this_machine_or_an_index() -> None:
    for path in tracked():
        if path != Path(__file__):
            found = MACHINE_PATH.search(path.read_text(errors="replace"))
            assert found is None, f"{name_of(path)}: {found}"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "bench/peers/litellm.txt"])
def test_everything_that_is_installed_is_hashed(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    requirements = re.findall(r"^[a-z0-9][^\n]*(?:\n    [^\n]*)*", text, re.MULTILINE)
    assert requirements
    for requirement in requirements:
        assert "==" in requirement
        assert "--hash=sha256:" in requirement


@pytest.mark.parametrize("path", [path for path in tracked() if path.suffix == ".md"], ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = (
        [_without_comments(block) for block in CODE_BLOCK.findall((ROOT / name).read_text())]
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english == chinese


def _without_comments(block: str) -> str:
    return SPACE_BETWEEN.sub(" ", re.sub(r"#.*", "", block))


def test_documents_name_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE):
                assert target in targets, f"{name_of(path)}: make {target}"


def test_documents_name_files_that_exist() -> None:
    for path in tracked():
        if path.suffix == ".md" and path.name != "CHANGELOG.md":
            for name in re.findall(r"`((?:tests|bench|libs|services|docs|deploy)/[\w./-]+\.\w+)`", path.read_text()):
                assert (ROOT / name).exists(), f"{name_of(path)}: {name}"


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("0*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
