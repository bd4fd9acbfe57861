"""Plant faults one by one and see the unit tests kill each. Run by hand; pytest does not collect it.

    python tests/mutation.py [NAME...] [--jobs N] [--list]

The faults stand in ``tests/mutation_faults/*.toml``: plausible slips, each a text that its module holds exactly once,
what to put in its place, and the tests that should see it. Every fault is planted in a copy of the checkout. It is
killed where one of its tests fails; tests that cannot be collected, or take too long, are trouble and no kill.

Exit codes: 0 all faults killed, 1 some survived, 2 trouble (a fault that does not fit the code, tests that fail without
any fault, a run that gave no verdict).
"""

import argparse
import ast
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
FAULTS = Path(__file__).resolve().parent / "mutation_faults"
KEYS = {"fault", "module", "old", "new", "tests"}
LIMIT = 240  # seconds for the tests of one fault
PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]  # no chance, no deadlines
FAILED = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)


class TroubleError(Exception):
    """Something that keeps the script from a verdict."""


@dataclass(frozen=True)
class Fault:
    """One slip: ``old`` becomes ``new`` in ``module``, which one of ``tests`` (files, or tests in them) should see."""

    name: str
    fault: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, root: Path) -> str:
        """The module's source with the fault in it.

        Raises:
            TroubleError: if it does not fit there, cannot be parsed, or changes nothing but the layout.
        """
        source = (root / self.module).read_text()
        if (times := source.count(self.old)) != 1:
            raise TroubleError(
                f"{self.name}: {self.module} holds {self.old!r} {times} times, and a fault is planted where it stands "
                "once. Bring tests/mutation_faults in step with the code."
            )
        changed = source.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        except SyntaxError as error:
            raise TroubleError(f"{self.name}: {self.module} with it is no Python ({error}); mend the fault.") from error
        if same:
            raise TroubleError(f"{self.name}: old and new say the same in {self.module}; plant something else.")
        return changed

    def place(self, root: Path) -> str:
        """File and line of the first character that changes."""
        source = (root / self.module).read_text()
        pairs = enumerate(zip(self.old, self.new, strict=False))
        alike = next((n for n, (a, b) in pairs if a != b), min(len(self.old), len(self.new)))
        at = source.index(self.old) + alike
        return f"{self.module}:{source.count(chr(10), 0, at) + 1}"


@dataclass(frozen=True)
class Verdict:
    """``killer``: the first test that failed; None if none did. ``trouble``: why there is no verdict."""

    killer: str | None = None
    trouble: str = ""


def load(folder: Path = FAULTS) -> list[Fault]:
    """All faults, called after their file and heading.

    Raises:
        TroubleError: for a fault with other keys than ``KEYS``, or tests that are not there.
    """
    found = []
    for path in sorted(folder.glob("*.toml")):
        for heading, entry in tomllib.loads(path.read_text()).items():
            name = f"{path.stem}/{heading}"
            if set(entry) != KEYS:
                raise TroubleError(f"{name} has the keys {sorted(entry)}; it needs {sorted(KEYS)}.")
            if missing := [test for test in entry["tests"] if not (ROOT / "tests" / test.split("::")[0]).is_file()]:
                raise TroubleError(f"{name}: there is no tests/{missing[0]}; name files of the tests folder.")
            found.append(Fault(name, **{**entry, "tests": tuple(entry["tests"])}))
    return found


def select(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    """The faults of the given files (``passes``) or of the given name (``passes/top-off-by-one``); no names: all."""
    known = {fault.name for fault in faults} | {fault.name.split("/")[0] for fault in faults}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
            raise TroubleError(f"there is no fault or file of faults {name!r}{meant}")
    return [fault for fault in faults if not names or {fault.name, fault.name.split("/")[0]} & set(names)]


def snapshot(root: Path, to: Path) -> None:
    """Copy what git knows of, and new files that it does not ignore: all faults meet the same state of the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        raise TroubleError(f"git cannot list the files of {root}: {listed.stderr.strip()}; run in a git checkout.")
    for name in listed.stdout.split("\0"):
        if name and (root / name).is_file():  # a deleted file is still listed
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, to / name)


def check_fit(faults: Iterable[Fault], root: Path = ROOT) -> None:
    """Refuse faults that do not fit the code, all of them at once."""
    said = []
    for fault in faults:
        try:
            fault.planted(root)
        except TroubleError as trouble:
            said.append(str(trouble))
    if said:
        raise TroubleError("\n".join(said))


def judge(base: Path, tests: Sequence[str], fault: Fault | None = None) -> Verdict:
    """What the tests say of a copy of ``base`` with the fault planted in it, or with none."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder).resolve() / "copy"
        shutil.copytree(base, copy)
        if fault:
            (copy / fault.module).write_text(fault.planted(base))
        env = {
            **os.environ,
            "PYTHONPATH": str(copy),  # stands before an installed checkout
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTEST_ADDOPTS": "",
        }

        def python(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, *arguments]
            return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=LIMIT)

        try:
            imported = python("-c", "import anchorlens; print(anchorlens.__file__)").stdout.strip()
            if imported != str(copy / "anchorlens" / "__init__.py"):
                return Verdict(trouble=f"anchorlens was imported from {imported!r} and not from the copy {copy}")
            run = python(*PYTEST, *(f"tests/{test}" for test in tests))
        except subprocess.TimeoutExpired:
            return Verdict(trouble=f"no end after {LIMIT} s")
    killers = FAILED.findall(run.stdout)
    if run.returncode == 0:
        return Verdict()
    if run.returncode == 1 and killers:
        return Verdict(killer=killers[0])
    return Verdict(trouble=f"pytest exited with {run.returncode} and no failed test:\n{run.stdout[-1500:]}{run.stderr}")


def judged(judges: Sequence[Callable[[], Verdict]], jobs: int, what: str) -> Iterator[Verdict]:
    """Verdicts in the order of ``judges``, ``jobs`` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(each) for each in judges]
        try:
            for each in tqdm(running, desc=what, unit="run"):
                yield each.result()
        finally:
            for each in running:
                each.cancel()


def check_baseline(base: Path, faults: Iterable[Fault], jobs: int) -> None:
    """Refuse to judge by tests that fail without any fault."""
    sets = sorted({fault.tests for fault in faults})
    verdicts = judged([lambda tests=tests: judge(base, tests) for tests in sets], jobs, "without faults")
    for tests, verdict in zip(sets, verdicts, strict=True):
        if verdict.killer or verdict.trouble:
            raise TroubleError(f"{', '.join(tests)} fail without any fault: {verdict.killer or verdict.trouble}")


def report(faults: Sequence[Fault], verdicts: Sequence[Verdict], base: Path) -> str:
    """A table of file and line, fault, and what killed it; then how many were."""
    rows = [(fault.place(base), fault.name, fault.fault) for fault in faults]
    wide = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for row, verdict in zip(rows, verdicts, strict=True):
        said = "TROUBLE" if verdict.trouble else verdict.killer or "SURVIVED"
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, wide, strict=True)), said]))
    killed = sum(verdict.killer is not None for verdict in verdicts)
    return "\n".join([*lines, f"{killed} of {len(faults)} faults killed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Plant faults one by one and see the unit tests kill each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files of faults, or faults; none: all")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (1)")
    parser.add_argument("--list", action="store_true", help="list the faults by file and line, and run nothing")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least 1")
    try:
        faults = select(load(), given.names)
        check_fit(faults)
        if given.list:
            print("\n".join(f"{fault.place(ROOT)}  {fault.name}  {fault.fault}" for fault in faults))
            return 0
        with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
            base = Path(folder)
            snapshot(ROOT, base)
            check_baseline(base, faults, given.jobs)
            verdicts = []
            planted = [lambda fault=fault: judge(base, fault.tests, fault) for fault in faults]
            for fault, verdict in zip(faults, judged(planted, given.jobs, "faults"), strict=True):
                verdicts.append(verdict)
                if not verdict.killer:
                    tqdm.write(f"{fault.place(base)} {fault.name}: {verdict.trouble or 'SURVIVED'}", file=sys.stderr)
            print(report(faults, verdicts, base))
    except TroubleError as trouble:
        print(trouble, file=sys.stderr)
        return 2
    if any(verdict.trouble for verdict in verdicts):
        return 2
    return 0 if all(verdict.killer for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
