"""The house, checked: who may import whom, and the rules that keep files small and honest."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dermjax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# files at the root that everyone may import
FOUNDATIONS = {"buckets", "config_file", "errors", "machine", "page", "parts", "progress", "run_folder", "signals"}
LEAVES = {"models", "sharding", "data", "processes"}
STAGES = {
    "preparation",
    "pretraining",
    "tuning",
    "generation",
    "transformation",
    "curation",
    "classification",
    "publication",
}
ENGINES = {"training", "sampling", "evaluation", "reconstruction"}  # what stages share
BELOW_STAGES = ENGINES | LEAVES | {"weights", "diffusion", "segmentation"}
# what a room may import besides itself and the foundations: down, and never sideways between stages
TABLE = {
    **{name: set() for name in LEAVES | {"diffusion"}},
    "weights": {"models"},
    "segmentation": {"data", "models", "weights"},
    "training": {"processes", "sharding"},
    "evaluation": {"data", "diffusion", "models", "segmentation", "sharding", "training", "weights"},
    "reconstruction": {"data", "diffusion", "models", "training"},
    "sampling": {"data", "diffusion", "models", "sharding", "weights"},
    **dict.fromkeys(STAGES, BELOW_STAGES),
    **dict.fromkeys(("study", "demo"), STAGES | BELOW_STAGES | {"demo"}),
    "merge": STAGES | BELOW_STAGES,  # the parts of a stage
    "studio": STAGES | BELOW_STAGES,  # the browser page
    "bench": STAGES | BELOW_STAGES,  # times what the stages do
    "__main__": {"processes"},  # imports a stage by its name when it is asked for
    **{name: set() for name in FOUNDATIONS},
}
ORACLES = {"torch", "torchvision", "diffusers", "tensorflow"}  # for tests only, never in the package
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
VAGUE = {"utils", "util", "common", "helpers", "helper", "core", "lib", "base", "misc"}


def parts(path):
    """("dermjax", "models", "vae") of a source file; a package is its folder."""
    names = path.relative_to(ROOT).with_suffix("").parts
    return names[:-1] if names[-1] == "__init__" else names


def room(names):
    """The row of the table that a module belongs to, from its parts."""
    return names[1]


def imports(path):
    """Every module that a file imports anywhere in it, as parts; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name, not relatively"
            yield from ((*node.module.split("."), alias.name) for alias in node.names)


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in SOURCES if len(parts(path)) > 1], ids=relative)
def test_imports_follow_the_table(path):
    own = room(parts(path))
    assert own in TABLE, f"{relative(path)}: the house has no room of this name"
    allowed = TABLE[own] | FOUNDATIONS | {own}
    for names in imports(path):
        if names[0] == "dermjax" and len(names) > 1:
            assert room(names) in allowed, f"{relative(path)} imports {'.'.join(names)}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_oracles_stay_in_the_tests(path):
    assert not {names[0] for names in imports(path)} & ORACLES


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=relative)
def test_data_knows_no_jax(path):
    assert not {names[0] for names in imports(path)} & JAX


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_networks_are_split_and_merged_in_one_place(path):
    calls = {f"{node.value.id}.{node.attr}" for node in ast.walk(ast.parse(path.read_text())) if is_attribute(node)}
    assert parts(path)[-1] == "nnx_tree" or not calls & {"nnx.merge", "nnx.split", "nnx.update", "nnx.to_pure_dict"}


def is_attribute(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def test_no_name_says_nothing():
    assert not [relative(path) for path in PACKAGE.rglob("*") if path.suffix in ("", ".py") and path.stem in VAGUE]


def test_no_import_goes_in_a_circle():
    modules = {".".join(parts(path)): path for path in SOURCES}
    below = {}
    for name, path in modules.items():
        named = {each[:length] for each in imports(path) for length in (len(each), len(each) - 1)}
        below[name] = {".".join(each) for each in named} & set(modules) - {name, "dermjax"}
    order = graphlib.TopologicalSorter(below)
    order.prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name == "__init__.py" and path.parent != PACKAGE], ids=relative
)
def test_an_init_is_one_docstring_line(path):
    """But that of the package, which is the Python interface."""
    tree = ast.parse(path.read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) == 1


def test_every_folder_with_sources_is_a_package():
    assert not [relative(path.parent) for path in SOURCES if not (path.parent / "__init__.py").exists()]


@pytest.mark.parametrize("path", SOURCES + CONFIGS, ids=relative)
def test_every_module_says_what_lives_in_it(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_nothing_names_a_machine():
    """No folder of one machine, no package registry, no local address of a package in what people clone."""
    machine = re.compile(r"(?<![\w.~])/(?:work|root|home|Users)/|py[p]i\.org|python[h]osted|file:[/]{2}")
    folders = (PACKAGE, *(ROOT / name for name in ("configs", "tests", "launch", ".ci")))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [path for path in ROOT.glob("*") if path.suffix in (".md", ".toml")]
    texts = [
        path for path in files if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".yaml", ".sh", ".jinja", "")
    ]
    found = {relative(path): machine.findall(path.read_text()) for path in texts if "__pycache__" not in path.parts}
    assert not {path: names for path, names in found.items() if names}
