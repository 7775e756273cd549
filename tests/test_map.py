"""The rooms of the package: the map in its docstring is the truth, and doors open one way."""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

import speval

ROOT = pathlib.Path(speval.__file__).parent
MAP = [line.split()[0] for line in (speval.__doc__ or "").splitlines() if line.startswith("    ")]
# What is optional is imported where it is needed.
OPTIONAL = {
    "database.postgres",
    "domains",
    "history",
    "process.instances",
    "process.jobs",
    "search",
    "stopping",
    "view.doctor",
    "view.progress",
    "view.survey",
}
ROOMS = "sqlite", "postgres", "locks", "tables"  # of databases


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Return the files of the package by the names on the map; those without code are none."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if len(ast.parse(file.read_text()).body) > 1 and name not in ("", "__main__"):
            found[name] = file
    return found


@functools.cache
def imports(name: str) -> list[tuple[str, str, bool]]:
    version = "", "__version__"  # is not in a module, for setup.py to read it
    return [found for found in _imports(modules()[name]) if found[:2] != version]


def _imports(file: pathlib.Path) -> Iterator[tuple[str, str, bool]]:
    """Yield module and name of what a module imports, and whether it does so inside a function."""
    tree = ast.parse(file.read_text())
    outside = {node for body in tree.body if isinstance(body, (ast.Try, ast.If)) for node in ast.walk(body)}
    outside.update(tree.body)
    for node in ast.walk(tree):
        inside = node not in outside
        if isinstance(node, ast.ImportFrom):
            folder = file.parent.relative_to(ROOT).parts
            within = folder[: len(folder) - node.level + 1] if node.level else ()
            where = [*within, *(node.module or "").split(".")] if node.module else list(within)
            for alias in node.names:
                module = ".".join(where)
                if node.level and ".".join([*where, alias.name]) in modules():
                    yield ".".join([*where, alias.name]), "", inside
                else:
                    yield module if node.level else f"/{module}", alias.name, inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield f"/{alias.name}", "", inside


def test_the_map_has_a_line_for_each_module() -> None:
    assert sorted(MAP) == sorted(modules())


@pytest.mark.parametrize("name", MAP)
def test_each_module_imports_only_from_those_below_it(name: str) -> None:
    below = MAP[MAP.index(name) + 1 :]
    ours = [module for module, _, _ in imports(name) if not module.startswith("/")]
    assert [module for module in ours if module not in below] == []


@pytest.mark.parametrize("name", MAP)
def test_no_module_imports_what_another_calls_its_own(name: str) -> None:
    ours = [(module, what) for module, what, _ in imports(name) if module[:1] != "/"]
    assert [pair for pair in ours if pair[1].startswith("_")] == []


@pytest.mark.parametrize("name", MAP)
def test_only_what_is_optional_is_imported_inside_a_function(name: str) -> None:
    inside = [module for module, _, inside in imports(name) if inside and not module.startswith("/")]
    assert [module for module in inside if module not in OPTIONAL] == []


@pytest.mark.parametrize("name", ["speval", "workers", "reading", "pace", "space", "values"])
def test_the_job_knows_no_files_of_a_database_and_no_exceptions_of_one(name: str) -> None:
    strangers = {
        "/sqlite3",
        "/fcntl",
        "/psycopg",
        "database.sqlite",
        "database.postgres",
        "database.locks",
        "database.tables",
    }
    assert not {module for module, _, _ in imports(name)} & strangers


@pytest.mark.parametrize("name", MAP)
def test_no_message_sends_to_a_package_that_may_be_another(name: str) -> None:
    assert "pip install" not in modules()[name].read_text()
