"""Imports only go down, siblings never import each other, each foreign library has one home (DESIGN)."""

import ast
from pathlib import Path

import wsi_mil

ROOT = Path(wsi_mil.__file__).parent
FLOORS = [
    {"errors"},
    {"config", "geometry", "metrics", "colours", "memory", "pulse"},
    {"manifest", "slide", "tissue", "encoders", "models", "store", "parallel", "device"},
    {"blocks", "locate"},  # blocks read a Slide's file faster than Slide does, and must agree with it
    {"readers"},
    {"tile", "embed", "train", "predict", "verify", "exchange", "catalog", "inspect"},
    {"heatmap"},  # embeds patches between those of the grid, where asked
    {"report", "view"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
HOMES = {
    "openslide": {"slide"}, "tiffslide": {"slide"}, "tifffile": {"blocks", "heatmap"},
    "imagecodecs": {"blocks"}, "simplejpeg": {"blocks"},
    "h5py": {"store"}, "zarr": {"store"}, "timm": {"encoders"}, "dask": {"parallel"},
    "distributed": {"parallel"}, "tyro": {"cli"},
    "sklearn": {"metrics"}, "shapely": {"tissue", "tile", "heatmap"}, "jinja2": {"report", "tile"},
    "huggingface_hub": {"encoders"}, "onnxruntime": {"encoders", "tissue"}, "torchmil": {"models"},
    "tomli_w": {"config"}, "tomllib": {"config"}, "tensorboard": {"train"},
}  # fmt: skip


def imports() -> list[tuple[str, str, str]]:
    """(file, module it belongs to, dotted name imported) for every import in the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(str(path.relative_to(ROOT)), module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}" if node.module == "wsi_mil" else str(node.module)
                    found.append((str(path.relative_to(ROOT)), module, dotted))
    return found


def test_every_module_has_a_floor():
    modules = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.rglob("*.py")}
    assert modules - {"__init__"} <= set(LEVEL)


def test_imports_only_go_down():
    wrong = []
    for file, module, name in imports():
        parts = name.split(".")
        if (
            parts[0] != "wsi_mil"
            or len(parts) < 2
            or module == "__init__"
            or parts[1] in {module, "__version__"}
        ):
            continue
        if LEVEL[parts[1]] >= LEVEL[module]:
            wrong.append(f"{file} imports {name}")
    assert not wrong


def test_each_foreign_library_has_one_home():
    wrong = [f"{f} imports {n}" for f, m, n in imports() if m not in HOMES.get(n.split(".")[0], {m})]
    assert not wrong


def test_one_module_imports_dask():
    found = {file for file, _, name in imports() if name.split(".")[0] in {"dask", "distributed"}}
    assert found == {"parallel/cluster.py", "parallel/local.py", "parallel/worker.py"}


def test_modules_and_functions_stay_short():
    long = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > 400:
            long.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path.name}: {node.name}")
    assert not long
