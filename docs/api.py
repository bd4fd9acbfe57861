"""Write the pages of the API from the docstrings: ``make docs``, into outputs/docs. A warning is an error."""

import importlib
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.extract
import pdoc.render

# Commands have --help, what runs inside a kernel or a worker is nobody's to call, the toy's training has its README.
WHAT = ("anchorlens", r"!anchorlens\.(cli|toy|warm\.\w+|sweep\.\w+)(\.|$)")


def write(folder: Path) -> Path:
    """Write a page for each public module, and the one that leads to them, which is returned.

    Raises:
        Warning: whatever pdoc warns of: a type that means nothing, say, or a module that cannot be imported.
    """
    with warnings.catch_warnings():
        importlib.import_module("papermill")  # whose engine is ours: before what it is made of
        for name in pdoc.extract.walk_specs(WHAT):
            importlib.import_module(name)  # of which warnings are those of other packages
        warnings.simplefilter("error")
        pdoc.render.configure(docformat="google", footer_text="anchorlens")
        pdoc.pdoc(*WHAT, output_directory=folder)
    return folder / "index.html"


if __name__ == "__main__":
    print(f"wrote {write(Path(sys.argv[1] if len(sys.argv) > 1 else 'outputs/docs'))}")
