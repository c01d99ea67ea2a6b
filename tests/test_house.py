"""The rules of the house that a machine can hold: who imports whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import downmix

ROOT = Path(downmix.__file__).parent
# A room may import from itself, from those listed, and from _extras and _cudnn, which import none.
MAY_IMPORT = {
    "ops": set(),
    "kernels": {"ops"},
    "compat": {"ops", "layers"},
    "layers": {"ops"},
    "cost": {"ops", "layers"},
    "convert": {"layers", "cost"},
    "export": {"ops", "layers"},
    "fuse": {"ops", "layers", "cost", "convert"},
    "published": set(),
    "explain": {"ops", "layers", "cost"},
    "models": {"ops", "layers", "cost", "convert", "published"},
    "train": {"ops", "layers", "convert", "models", "published"},
    "tools": {"ops", "layers", "cost", "convert", "explain", "export", "fuse", "models", "train", "_version"},
    "cli": {"tools", "_version"},
    "__main__": {"cli"},
    "_extras": set(),
    "_cudnn": set(),
    "__init__": {"ops", "layers", "convert", "fuse", "published", "_version"},
    "_version": set(),
}
# Folders and files that alone may import a package.
ONLY = {
    "timm": ("models/", "tools/", "train/"),
    "triton": ("kernels/triton/",),
    "numba": ("kernels/numba/",),
    "jsonargparse": ("cli.py", "tools/"),
    "flask": ("tools/",),
    "jinja2": ("tools/",),
    "plotly": ("tools/",),
    "pytorch_grad_cam": ("explain/",),
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, with relative ones made absolute."""
    package = ["downmix", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    room = place.partition("/")[0].removesuffix(".py")
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "downmix" and rest:
            assert rest[0] in {room, "_extras", "_cudnn"} | MAY_IMPORT[room], f"{room} must not import {name}"
        if top in ONLY:
            assert place.startswith(ONLY[top]), f"{place} must not import {top}"


HEAVY = """
import sys, torch
heavy = {"numba", "triton", "timm", "matplotlib"}
with_torch = heavy & set(sys.modules)
import downmix
print(heavy & set(sys.modules) - with_torch)
"""


def test_importing_downmix_loads_no_heavy_package() -> None:
    result = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()", "downmix loads what torch alone does not"


def test_the_package_init_holds_imports_only() -> None:
    for path in ROOT.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert isinstance(node, ast.Import | ast.ImportFrom) or is_all or is_docstring, path


@pytest.mark.parametrize(
    ("package", "code", "said"),
    [
        ("timm", "import downmix.models", "ImportError: {}: pip install 'downmix[models]'"),
        ("rich", "import downmix.train", "ImportError: {}: pip install 'downmix[train]'"),
        ("jsonargparse", "import downmix.__main__", "downmix: {}: pip install 'downmix[train]'"),
        ("rich", "import downmix.__main__", "downmix: {}: pip install 'downmix[train]'"),
    ],
)
def test_where_a_package_is_missing_it_is_said_what_brings_it(package: str, code: str, said: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; {code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    reason = f"this needs more packages (import of {package} halted; None in sys.modules)"
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == said.format(reason)


FOR_A_GPU = """
import sys
for name in ("timm", "jsonargparse", "torchmetrics", "safetensors", "onnx", "scipy"):
    sys.modules[name] = None
import benchmarks.ops
import tests.kernels.test_cuda, tests.kernels.test_triton, tests.kernels.test_triton_layers
"""


def test_operators_are_tested_and_timed_without_what_networks_need() -> None:
    subprocess.run([sys.executable, "-c", FOR_A_GPU], check=True, cwd=ROOT.parent)
