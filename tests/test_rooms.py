"""The order of the package's rooms: who may import whom. Imports within functions and under TYPE_CHECKING count too."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "famus_hf"
# From the top to the bottom: a room imports from itself and from rooms below it. A file belongs to the longest name.
ROOMS = (
    "famus_hf.cli",
    "famus_hf",  # its public names
    "famus_hf.two_networks",
    "famus_hf.trainer",
    "famus_hf.review",
    "famus_hf.reporting",
    "famus_hf.reporting.diagnostics",
    "famus_hf.reporting.figures",
    "famus_hf.hub",
    "famus_hf.data",
    "famus_hf.data.inputs",
    "famus_hf.data.sources",
    "famus_hf.data.labels",
    "famus_hf.data.media",
    "famus_hf.training_args",
    "famus_hf.training_args_checks",
    "famus_hf.storage",
    "famus_hf.models",
    "famus_hf.core",
    "famus_hf.core.autodiff",
    "famus_hf.core.parallel",
    "famus_hf.metrics",
    "famus_hf.errors",
)
# Folders for many files of a kind, within the room that they stand in.
SHELVES = {"famus_hf.core.meta_learners", "famus_hf.core.pair_methods"}
FLAT_FILES = {"__init__.py", "__init__.pyi", "training_args.py", "training_args_checks.py", "errors.py", "metrics.py"}
OF_CORE = {"torch", "numpy", "scipy"}  # beside the standard library

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}


def imported_by(name):
    """Every module that a file names in an import, wherever that stands."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or "models" in name, f"{name} has a relative import"
            base = node.module if node.level == 0 else f"{name.rpartition('.')[0]}.{node.module}"
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in SOURCES else base


ARROWS = {name: {other for other in imported_by(name) if other in SOURCES and other != name} for name in SOURCES}


def room_of(name):
    return max((room for room in ROOMS if name == room or name.startswith(f"{room}.")), key=len)


def test_no_room_imports_from_one_above_it():
    upwards = [
        f"{name} → {other}"
        for name, others in ARROWS.items()
        for other in sorted(others)
        if ROOMS.index(room_of(other)) < ROOMS.index(room_of(name))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_modules_import_each_other_in_a_circle():
    try:
        list(TopologicalSorter(ARROWS).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_every_folder_is_a_room_of_the_list_and_few_files_lie_outside_of_one():
    folders = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    flat = {f"{PACKAGE}.{path.stem}" for path in (ROOT / PACKAGE).glob("*.py")} - {f"{PACKAGE}.__init__"}
    assert folders | flat == set(ROOMS) | SHELVES
    assert {path.name for path in (ROOT / PACKAGE).glob("*.py*")} <= FLAT_FILES


def test_core_imports_torch_numpy_and_scipy_alone():
    allowed = OF_CORE | set(sys.stdlib_module_names)
    others = {
        f"{name} → {other}"
        for name in SOURCES
        if name.startswith("famus_hf.core")
        for other in imported_by(name)
        if not other.startswith("famus_hf.") and other.partition(".")[0] not in allowed
    }
    outside = {f"{name} → {other}" for name in SOURCES if name.startswith("famus_hf.core") for other in ARROWS[name]
               if not other.startswith(("famus_hf.core", "famus_hf.errors"))}  # fmt: skip
    assert not others | outside


def test_core_comes_without_the_libraries_of_hugging_face():
    code = "import sys; from famus_hf.core import meta_gradient; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"transformers", "accelerate", "datasets", "huggingface_hub", "sklearn"} & set(done.stdout.split())


def test_public_names_are_there():
    import famus_hf

    assert {"FaMUSTrainer", "MWNet", "load_famus", "meta_gradient"} <= set(famus_hf.__all__)
    assert all(getattr(famus_hf, name) is not None for name in famus_hf.__all__)


def test_no_module_takes_a_private_name_of_another_one():
    """Of our own modules: `from module import _name`, and `module._name`."""
    taken = []
    for name, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
            for alias in node.names
            if f"{node.module}.{alias.name}" in SOURCES
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                taken += [f"{name}: {alias.name}" for alias in node.names if alias.name.startswith("_")]
            is_of_module = (
                isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
            )
            if is_of_module and node.attr.startswith("_") and not node.attr.startswith("__"):
                taken.append(f"{name}: {node.value.id}.{node.attr}")
    assert not taken
