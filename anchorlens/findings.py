"""What the doctor is asked, what it finds, and how that is said."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anchorlens import preflight, rows

BAD_INPUT, MISSING = 2, 3  # exit codes
_CLAUSES = re.compile(r"; ?")
_SENTENCES = re.compile(r"\. (?=[A-Z])")


@dataclass(frozen=True)
class Asked:
    """What is to be run: the parameters of that name in every notebook; ``store`` is the folder of runs."""

    model: str = "toy"
    task: str = "sst2"
    data: str = ""
    revision: str = ""
    remote_code: bool = False
    device: str = "auto"
    dtype: str = "auto"
    store: Path = Path("outputs")

    @property
    def parameters(self) -> dict[str, Any]:
        """As a notebook takes them; one file does for queries and for demonstrations."""
        given = {name: value for name, value in asdict(self).items() if name != "store"}
        return given | {"pool": self.data}


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is ok, missing or problem; ``code`` is the exit code that it asks for."""

    what: str
    state: str
    found: str
    todo: str = ""
    code: int = 0


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where all that was asked for is there, otherwise that of what is wrong before that of what is missing."""
    return min((each.code for each in findings if each.code), default=0)


def refused(what: str, error: Exception) -> Finding:
    """A line that says what an error says, which is what was found and, after the first sentence, what to do."""
    missing = isinstance(error, preflight.MissingModelError | rows.MissingRowsError)
    said = str(error).replace("\n", ". ")
    found, todo = (_SENTENCES if _SENTENCES.search(said) else _CLAUSES).split(said + ";", maxsplit=1)
    state, code = ("missing", MISSING) if missing else ("problem", BAD_INPUT)
    return Finding(what, state, found.rstrip(".;"), _begun_small(todo.strip(" .;")), code)


def _begun_small(said: str) -> str:
    return said[:1].lower() + said[1:] if said[1:2].islower() else said


def table(found: Finding) -> str:
    """One line of the first table, and a second where there is something to do."""
    line = f"{found.state:<8} {found.what:<13} {found.found}"
    return line if not found.todo else f"{line}\n{'':<23}-> {found.todo}"


def summary(findings: Sequence[Finding], taken: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both tables as one object; without the second where something is wrong or missing."""
    code = exit_code(findings)
    said = {"status": "failed" if code else "ok", "exit_code": code, "findings": [asdict(each) for each in findings]}
    if code:
        said["error"] = "; ".join(each.found for each in findings if each.code)
    return said if taken is None else said | dict(taken)
