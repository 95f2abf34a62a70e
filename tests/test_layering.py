"""Who may import whom (README, "Architecture"), what only one file may do, and how few places a new model touches."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("conf", "data", "flows", "lightning_modules")
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
EVERYONE = ("conf", "data.durable")  # leaves: anyone may import them

_L = "lightning_modules."
MATHEMATICS = tuple(  # the families of models and what they share: no shards, no Lightning, no files
    _L + name
    for name in [
        "interfaces",
        "draws",
        "units",
        "gaussian",
        "rectified",
        "categorical",
        "families",
        "likelihood",
        "annealing",
        "stack",
        "perceptron",
        "doubled",
        "layered",
        "mean_field",
        "bipartite",
        "negative_phase",
        "tempering",
        "centering",
        "sparsity",
        "enumeration",
        "tied",
        "density",
        "algorithms",
        "boltzmann",
        "deep_boltzmann",
        "boltzmann_machine",
        "labeled",
        "belief_nets",
        "up_down",
        "unrolled",
        "corruption",
        "autoencoders",
        "lasso_problem",
        "lasso_descent",
        "lasso_paths",
        "lasso",
        "lasso_gradient",
        "sparse_coding",
        "predicted_codes",
        "psd",
        "atoms",
        "lista",
        "gabor",
        "dictionaries",
        "convolutional",
        "variational",
        "adversarial",
        "classifier",
        "statistics",
        "whitening",
        "deskew",
        "topics",
        "perplexity",
        "kmeans",
        "mixture_model",
        "patch_features",
        "dec",
        "clustering",
        "maps",
        "itq",
        "tfidf",
        "semantic_hashing",
        "ranking",
        "hashing",
    ]
)
JOBS = tuple(
    _L + name
    for name in [
        "fit",
        "learning",
        "passes",
        "rounds",
        "finetuning",
        "evaluation",
        "retrieval",
        "sampling",
        "encoding",
        "searching",
        "planning",
    ]
)

ALLOWED: dict[str, tuple[str, ...]] = {  # package or file → ours it may import beside EVERYONE; the longest that fits
    "conf": (),
    "data.durable": (),
    "data": ("data",),
    "flows": ("flows", "data"),
    "lightning_modules": MATHEMATICS,
    _L + "interfaces": (),
    _L + "draws": (),
    _L + "units": (_L + "draws", _L + "interfaces"),
    _L + "gaussian": (_L + "units",),
    _L + "rectified": (_L + "units",),
    _L + "categorical": (_L + "units",),
    _L + "likelihood": (_L + "interfaces",),
    _L + "annealing": (_L + "bipartite", _L + "likelihood", _L + "units"),
    _L + "doubled": (_L + "units",),
    _L + "bipartite": (_L + "units",),
    _L + "negative_phase": (_L + "bipartite", _L + "interfaces"),
    _L + "tempering": (_L + "bipartite", _L + "interfaces", _L + "negative_phase"),
    _L + "tied": (_L + "bipartite",),
    _L + "sparsity": (),
    _L + "corruption": (),
    _L + "gabor": (),
    _L + "centering": (_L + "bipartite",),
    _L + "enumeration": (_L + "bipartite", _L + "interfaces", _L + "likelihood", _L + "negative_phase", _L + "units"),
    _L + "stack": (_L + "interfaces", _L + "boltzmann"),  # the latter only in its example
    _L + "hamming": ("data",),
    _L + "training": (
        *(_L + name for name in ("interfaces", "stack", "draws", "checkpoint", "optimizer", "seeding")),
        "data",
    ),
} | {job: ("lightning_modules", "data") for job in JOBS}
ONLY_IN = {  # a library, and the only places that may import it
    "prefect": ("flows.",),
    "prefect_dask": ("flows.cluster",),
    "dask": ("flows.cluster",),
    "distributed": ("flows.cluster",),
    "mlflow": ("flows.tracking",),
    "pytorch_lightning": ("lightning_modules.training", "lightning_modules.fit", "data.loading"),
    "faiss": ("lightning_modules.hamming",),
    "webdataset": ("data.foreign",),
    "torch": ("lightning_modules", "data.loading"),
    "pickle": (),
    "cloudpickle": (),
    "joblib": (),
    "dill": (),
}
TORCH_FREE = ("data.loading",)  # the modules of data that flows must not import


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (
                full if (ROOT / f"{full.replace('.', '/')}.py").exists() else str(node.module)
                for full in (f"{node.module}.{alias.name}" for alias in node.names)
            )


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place.rstrip(".") or name.startswith(place.rstrip(".") + ".") for place in places)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_every_file_imports_only_what_its_layer_may(path: Path) -> None:
    name = module(path)
    rule = max((key for key in ALLOWED if within(name, (key,))), key=len)
    for imported in imports(path):
        if imported.split(".")[0] in PACKAGES:
            allowed = ALLOWED[rule] + EVERYONE
            assert within(imported, allowed), f"{name} imports {imported}; it may import {allowed}"
            assert not (name.startswith("flows") and within(imported, TORCH_FREE)), f"{name} imports {imported}, torch"
        library = imported.split(".")[0]
        if library in ONLY_IN:
            assert within(name, ONLY_IN[library]), f"{name} imports {library}; only {ONLY_IN[library]} may"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_in_the_product_can_run_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in ("eval", "exec", "os.system", "os.popen"), f"{module(path)}: {called}"
        assert given.get("shell") != "True", f"{module(path)}: shell=True"
        assert not called.endswith(("extractall", "load_from_checkpoint")), f"{module(path)}: {called}"
        if called == "torch.load":
            assert module(path) == "lightning_modules.checkpoint" and given["weights_only"] == "True"
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", f"{module(path)}: np.load without allow_pickle=False"
        if called.startswith("yaml."):
            assert module(path) == "conf.reading", f"{module(path)}: {called}"


def test_files_stay_under_450_lines() -> None:
    long = [path for path in [*FILES, *(ROOT / "tests").rglob("*.py")] if len(path.read_text().splitlines()) > 450]
    assert not long


def test_the_command_and_its_flows_load_neither_torch_nor_webdataset() -> None:
    code = "import sys, flows.cli, flows.pipeline; print(sorted({'torch', 'webdataset'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_quiet())
    assert found.stdout.strip() == "[]"


def test_planning_evaluating_and_sampling_load_no_lightning() -> None:
    """It takes twice as long to import as torch."""
    code = "import sys, lightning_modules.planning, lightning_modules.evaluation; print('torch' in sys.modules)"
    code += "; print('pytorch_lightning' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_quiet())
    assert found.stdout.split() == ["True", "False"]


TOY = '''
"""A toy: the mean of the data."""
from typing import Self
import torch
from torch import Tensor, nn
from lightning_modules.interfaces import Batch, Losses, Model

class Toy(Model):
    def __init__(self, *, num_visible: int) -> None:
        super().__init__()
        if num_visible < 1:
            raise ValueError("num_visible must be at least 1")
        self.num_visible = num_visible
        self.center = nn.Parameter(torch.zeros(num_visible))

    def losses(self, batch: Batch) -> Losses:
        assert isinstance(batch, Tensor)
        return {"loss": ((batch - self.center) ** 2).sum(dim=1).mean()}

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        return cls(num_visible=3), torch.rand(2, 3)
'''


def test_a_new_model_touches_three_places_and_the_contract_tests_find_it(tmp_path: Path) -> None:
    copy = tmp_path / "scratch"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", copy)

    (copy / "lightning_modules" / "toy.py").write_text(TOY)
    registry = copy / "lightning_modules" / "__init__.py"
    text = registry.read_text().replace("MODELS: dict", "from lightning_modules.toy import Toy\n\nMODELS: dict")
    registry.write_text(text.replace('    "rbm": RBM,\n', '    "rbm": RBM,\n    "toy": Toy,\n'))
    recipe = copy / "conf" / "toy.yaml"
    recipe.write_text("name: toy\ndata: {source: {kind: digits}}\nstages: {toy: {model: {kind: toy}}}\n")

    def run(*command: str) -> str:
        ended = subprocess.run(
            [sys.executable, *command], cwd=copy, capture_output=True, text=True, env=_quiet(PYTHONPATH=str(copy))
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
        return ended.stdout

    assert " passed" in run("-m", "pytest", "tests/test_models.py", "-k", "toy", "-p", "no:cacheprovider")
    assert "64" in run("-m", "flows.cli", "check", str(recipe))


def _quiet(**more: str) -> dict[str, str]:
    return os.environ | {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | more
