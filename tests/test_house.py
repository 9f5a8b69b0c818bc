"""The house rules that a program can check: imports run one way, files and functions stay short, docstrings say what
a thing is."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

# Lowest first: a package imports from itself and from those before it. "" is what lies in jaxprune/ itself.
ORDER = (
    "ops",
    "parallel",
    "reduction",
    "",
    "pretraining",
    "data",
    "evaluation",
    "analysis",
    "training",
    "experiments",
    "export",
    "plots",
    "report",
    "app",
    "cli",
    "convert",
)
LINES, FUNCTION = 350, 60
FILES = sorted(file for part in ("jaxprune", "convert", "scripts", "tests") for file in ROOT.glob(f"{part}/**/*.py"))
LIBRARY = [file for file in FILES if file.is_relative_to(ROOT / "jaxprune")]
DOORS = [ROOT / "jaxprune" / name for name in ("__init__.py", "__main__.py")]  # both look at what is above them


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def package(module: str) -> str:
    """The part of ORDER that a module of jaxprune belongs to: `jaxprune.data.shards` is of "data"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else ""


def imports(file: Path) -> list[str]:
    """Modules of jaxprune that a file imports, inside functions as well."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [module for module in found if module.split(".")[0] == "jaxprune"]


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("file", [file for file in LIBRARY if file not in DOORS], ids=name)
def test_imports_run_one_way(file):
    mine = ORDER.index(package(module_of(file)))
    above = sorted({module for module in imports(file) if ORDER.index(package(module)) > mine})
    assert not above, f"{module_of(file)} imports from above: {above}"


def test_no_cycle():
    modules = {module_of(file): file for file in LIBRARY if file.name != "__init__.py"}
    graph = {module: {target for target in imports(file) if target in modules} for module, file in modules.items()}
    while leaves := [module for module, targets in graph.items() if not targets]:
        graph = {module: targets - set(leaves) for module, targets in graph.items() if module not in leaves}
    assert not graph, f"cycle among {sorted(graph)}"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert text.count("\n") <= LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: size for node in functions if (size := node.end_lineno - node.lineno + 1) > FUNCTION}
    assert not long


@pytest.mark.parametrize("file", FILES, ids=name)
def test_docstrings_begin_with_what_a_thing_is(file):
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    documented = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)]
    texts = [text for node in documented if (text := ast.get_docstring(node))]
    assert not [text for text in texts if re.match(r"(What|How|Which|Whether|Where|When)\b", text)]


@pytest.mark.parametrize("file", [file for file in FILES if not file.is_relative_to(ROOT / "tests")], ids=name)
def test_no_code_asks_which_family_a_model_is_of(file):
    """The families differ in the facts of `jaxprune.families`, of `convert.mapping.OFFICIAL`, and in their classes."""
    assert not re.search(r"""family\s*(==|!=|in)\s*[("'\[{]""", file.read_text())


@pytest.mark.parametrize("file", LIBRARY, ids=name)
def test_the_library_knows_neither_torch_nor_the_scripts(file):
    text = file.read_text()
    assert not re.search(r"^\s*(import|from) (torch|transformers|convert|scripts)\b", text, flags=re.MULTILINE)
    assert "scripts/" not in text, "who installs the wheel has no scripts/"
