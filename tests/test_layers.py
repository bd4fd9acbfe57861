"""Imports point one way: whatever stands later in a run may know what stands earlier, never the reverse."""

import ast
from pathlib import Path

import pytest

import anchorlens

PACKAGE = Path(anchorlens.__file__).parent
PROTOCOL = {"models.Lens", "models.Memory", "models.device_of"}
ANALYSIS = {"prompts", "batching", "hooks", "planner.*", "passes", "readings", "metrics", "edges", *PROTOCOL}
BACKEND = {"models.kinds", "models.protocol", "models.unembedding", "models.blocks"}
SEEN = {"intervals", "metrics", "paper.measures", "paper.stored"}
SHAPES = ("flow", "isolation", "extraction", "arms", "diagnosis")
PARTS = (
    "isolation.__init__",
    "isolation.sweeps",
    "isolation.controls",
    "diagnosis.__init__",
    "diagnosis.components",
    "reweighting.__init__",
    "reweighting.training",
    "reweighting.lessons",
    "compression.__init__",
    "compression.kept",
    "compression.cost",
)  # of the analyses that have several modules: these may import one another, never another analysis
# What each module may import from the package, as module names below it; "x.*" stands for all that a folder holds.
ALLOWED = {
    "__init__": set(),
    "yaml_files": set(),
    "task_files": {"yaml_files"},
    "tasks": {"task_files"},
    "decoders": set(),
    "folders": {"decoders"},
    "hub": {"folders"},
    "preflight": {"folders", "hub"},
    "hooks": set(),
    "parts": set(),
    "claims": set(),
    "outlet": set(),
    "store": {"claims", "parts"},
    "gathering": {"store"},
    "metrics": set(),
    "edges": set(),
    "explorer.__init__": {"explorer.*"},
    "explorer.page": {"edges", "figures.FLOWS", "figures.ROLES"},
    "intervals": set(),
    "browser": set(),
    "figures.__init__": {"figures.*", "browser"},
    "figures.painting": set(),
    "figures.style": set(),
    "figures.marks": {"figures.*"},
    "figures.flow": {"figures.*"},
    "figures.deep": {"figures.*"},
    "figures.loyalty": {"figures.*"},
    "figures.training": {"figures.*"},
    "figures.confusions": {"figures.*"},
    "figures.costs": {"figures.*"},
    "formats": {"tasks"},
    "hub_rows": {"tasks", "hub", "formats"},
    "rows": {"task_files", "tasks", "formats", "hub_rows"},
    "drafts.__init__": {"tasks", "rows", "drafts.drawing"},
    "drafts.drawing": {"tasks", "rows"},
    "tokenizing": set(),
    "pieces": {"drafts"},
    "prompts": {"tasks", "drafts", "pieces", "tokenizing"},
    "windows": {"drafts", "prompts"},
    "scoring": PROTOCOL,
    "batching": {"prompts", "scoring"},
    "models.__init__": {"hooks", "preflight", "room", "spreading", "models.*"},
    "models.kinds": {"hooks", "preflight"},
    "models.protocol": {"hooks", "preflight", "models.kinds"},
    "models.unembedding": set(),
    "models.blocks": set(),
    "models.attention": set(),
    "models.lean": {"models.attention"},
    "models.hooked": {"hooks", "preflight", *BACKEND, "models.lean", "models.attention"},
    "models.bridge": {"hooks", "preflight", *BACKEND},
    "planner.__init__": {"planner.*"},
    "planner.shapes": set(),
    "planner.costs": {"planner.shapes"},
    "planner.peaks": {"planner.shapes", "planner.costs"},
    "room": set(),
    "spreading": {"preflight"},
    "fitting": {"planner.*", "room", "hooks", *PROTOCOL},
    "finite": {"hooks", *PROTOCOL, "batching"},
    "passes": {"finite", "fitting", "planner.*", "hooks", *PROTOCOL, "prompts", "batching", "scoring"},
    "readings": {"hooks", *PROTOCOL, "batching", "passes"},
    "analyses.__init__": set(),
    "analyses.information_flow": ANALYSIS,
    "analyses.extraction": ANALYSIS,
    **{f"analyses.{name}": ANALYSIS | {f"analyses.{name.split('.')[0]}.*"} for name in PARTS},
    "analyses.reweighting.lessons": ANALYSIS | {"drafts"},  # it brings drafts of three kinds together
    "values": set(),
    "parameters": {"values", "preflight", "formats", "rows", "spreading", "tasks", "tokenizing"},
    "lengths": {"parameters", "preflight", "rows", "tasks", "tokenizing"},
    "dryrun": {"lengths", "parameters", "planner.*", "preflight", "room", "rows", "spreading", "store", "tasks"},
    "findings": {"preflight", "rows"},
    "doctor": {"findings", "browser", "folders", "hub", "planner.*", "preflight", "room", "rows", "tasks"},
    "needs": {"findings", "dryrun", "parameters", "room", "rows", "tasks"},
    "warm.__init__": {"warm.*"},
    "warm.engine": {"warm.*"},
    "warm.client": {"warm.COLD"},
    "warm.printing": set(),
    "warm.ready": set(),
    "warm.inside": {"__init__", "warm.*", "figures.*", "models.*"},
    "warm.resident": {"preflight"},
    "warm.settings": set(),
    "warm.traces": set(),
    "sweep.__init__": {"sweep.*", "values.ParameterError"},
    "sweep.grid": {"batch", "parameters", "store", "values", "yaml_files"},
    "sweep.progress": {"claims", "outlet"},
    "sweep.events": {"claims", "store", "outlet", "sweep.progress"},
    "sweep.stopping": set(),
    "sweep.marks": set(),
    "sweep.inside": {"batch", "warm.Kernel", "sweep.marks"},
    "sweep.workers": {"batch", "claims", "store", "sweep.grid", "sweep.events"},
    "sweep.local": {"batch", "preflight", "sweep.grid", "sweep.inside", "sweep.marks"},
    "sweep.nodes": set(),
    "sweep.actor": {"batch", "parameters", "preflight", "tasks", "sweep.inside", "sweep.marks"},
    "sweep.cluster": {
        *("batch", "parameters", "store", "sweep.actor", "sweep.grid", "sweep.inside"),
        *("sweep.marks", "sweep.nodes", "sweep.workers"),
    },
    "tracking.__init__": {"store", "tracking.*"},
    "tracking.entries": {"store"},
    "tracking.sinks": {"tracking.entries"},
    "report.__init__": {"report.*"},
    "report.runs": {"store", "parts"},
    "report.drawings": set(),
    "report.measures": {"intervals", "paper.measures", "paper.published", "paper.shapes.*", "paper.stored"},
    "report.answers": {"paper.published", "paper.stored", "report.runs", "report.drawings", "report.measures"},
    "report.formulas": set(),
    "report.markup": set(),
    "report.notebooks": {"report.formulas", "report.markup"},
    "report.pages": {"report.answers", "report.notebooks", "report.runs"},
    "report.site": {"report.pages", "report.runs"},
    "batch": {"claims", "store", "gathering", "parameters", "warm.Kernel", "warm.cold", "__version__"},
    "paper.__init__": {"intervals", "paper.*"},
    "paper.published": set(),
    "paper.stored": {"preflight", "store", "tasks", "paper.published"},
    "paper.measures": {"intervals", "metrics", "tasks", "paper.stored"},
    "paper.shapes.__init__": {"paper.shapes.*", "paper.measures", "paper.stored"},
    "paper.shapes.seen": {"intervals", "paper.measures", "paper.stored"},
    **{f"paper.shapes.{name}": {"paper.shapes.seen", *SEEN} for name in SHAPES},
    "reproducing": {"batch", "paper", "preflight", "sweep", "tasks", "values"},
    "toy.__init__": set(),
    "toy.corpus": {"tasks", "rows", "toy.*"},
    "toy.episodes": {"tasks", "rows", "toy.*"},
    "toy.network": {"tasks", "rows", "toy.*"},
    "toy.train": {"tasks", "rows", "toy.*"},
    "cli.shared": {"outlet"},
    "cli.runs": {"*"},
    "cli.sweeps": {"*"},
    "cli.looks": {"*"},
    "cli.paper": {"*"},
    "cli.reports": {"*"},
    "cli.__init__": {"__version__", "cli.*"},
    "cli.__main__": {"cli"},
}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imported(source: str, module: str) -> list[tuple[str, bool]]:
    """Full dotted name of everything that ``source`` imports, and whether that happens inside a function."""
    tree = ast.parse(source)
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = ["anchorlens", *module.split(".")][: -node.level] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        found += [(name, node in inside) for name in names]
    return found


def own(source: str, module: str) -> list[tuple[str, bool]]:
    """Of ``imported`` what belongs to the package: module, or module.name where it is a name in one."""
    names = [(name.split(".", 1), late) for name, late in imported(source, module)]
    return [(rest[0] if rest else "__init__", late) for (top, *rest), late in names if top == "anchorlens"]


def may_import(module: str, name: str) -> bool:
    """Whether ``name`` (module or module.name) is allowed in ``module``."""
    parts = name.split(".")
    within = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]  # a module, a name in it, the packages around it
    wanted = {"*", *within, *(f"{each}.*" for each in within)}
    return not wanted.isdisjoint(ALLOWED[module])


def test_every_module_has_its_place_in_the_table():
    assert sorted(MODULES) == sorted(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_imports_only_what_stands_before_it(module):
    found = own(MODULES[module].read_text(), module)
    assert [name for name, _ in found if not may_import(module, name)] == []


def test_no_module_can_reach_itself_through_its_imports():
    direct = {module: {name for name, _ in own(path.read_text(), module)} for module, path in MODULES.items()}

    clear: set[str] = set()  # from which no way leads back

    def reached(module: str, path: tuple[str, ...] = ()) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in clear:
            return
        for name in direct[module]:
            for target in MODULES:
                if f"{name}.".startswith(f"{target}."):
                    reached(target, (*path, module))
        clear.add(module)

    for module in MODULES:
        reached(module)


def test_the_command_line_imports_the_package_only_when_a_command_runs():
    modules = [module for module in MODULES if module.partition(".")[0] == "cli"]
    found = [each for module in modules for each in own(MODULES[module].read_text(), module)]
    assert {name.partition(".")[0] for name, late in found if not late} == {"__version__", "cli"}
    assert any(late for _, late in found)


def test_only_models_imports_transformer_lens():
    users = {
        module
        for module, path in MODULES.items()
        for name, _ in imported(path.read_text(), module)
        if name.split(".")[0] == "transformer_lens"
    }
    assert users == {"models.hooked", "models.lean", "models.attention", "models.bridge"}


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("tasks", "from anchorlens import rows", ["rows"]),
        ("tasks", "import anchorlens.rows as r", ["rows"]),
        ("tasks", "def f():\n    from anchorlens.rows import load", ["rows.load"]),
        ("tasks", "from .rows import load", ["rows.load"]),
        ("tasks", "import anchorlens", ["__init__"]),
        ("toy.train", "from ..models import load\nfrom .corpus import CONTEXT", ["models.load"]),
        ("toy.train", "from anchorlens.toy import corpus", []),
        ("analyses.information_flow", "from anchorlens.models import Lens, load", ["models.load"]),
        ("analyses.information_flow", "from anchorlens import models", ["models"]),
        ("passes", "from anchorlens.models import Lens\nfrom anchorlens import hooks", []),
        ("passes", "from anchorlens.batch import run", ["batch.run"]),
    ],
)
def test_a_forbidden_import_is_seen_however_it_is_written(module, source, refused):
    assert [name for name, _ in own(source, module) if not may_import(module, name)] == refused
