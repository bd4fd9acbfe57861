"""Free memory: of the machine, within control groups, of a GPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anchorlens import room


@pytest.fixture
def groups(tmp_path) -> Path:
    """Three control groups, one in the other: without a limit, 1000 bytes, 5000 bytes."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, most, used in ((tmp_path, "max", 1), (tmp_path / "outer", "1000", 700), (inner, "5000", 200)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    return tmp_path


def test_the_limit_of_every_group_around_the_process_counts_and_idle_pages_are_free(groups, tmp_path):
    of_process = tmp_path / "process"
    of_process.write_text("0::/outer/inner\n")
    assert sorted(room._left_in_groups(groups, of_process))[:2] == [1000 - 700 + 50, 5000 - 200 + 50]


def test_groups_of_the_older_kind_are_read_by_their_own_names(tmp_path):
    folder = tmp_path / "memory" / "mine"
    folder.mkdir(parents=True)
    for name, text in {
        "memory.limit_in_bytes": "900",
        "memory.usage_in_bytes": "400",
        "memory.stat": "total_inactive_file 20\n",
    }.items():
        (folder / name).write_text(text)
    of_process = tmp_path / "process"
    of_process.write_text("5:cpu:/mine\n4:memory:/mine\n0::/\n")
    assert min(room._left_in_groups(tmp_path, of_process)) == 900 - 400 + 20


def test_without_groups_the_machine_alone_counts(tmp_path, monkeypatch):
    assert room._left_in_groups(tmp_path, tmp_path / "none") == [2**63]
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=77))
    assert room.free_bytes("cpu") == 77


def test_what_torch_keeps_for_later_is_free_on_a_gpu(monkeypatch):
    cuda = SimpleNamespace(
        memory_reserved=lambda index: 500, memory_allocated=lambda index: 200, mem_get_info=lambda index: (1000, 9999)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert room.free_bytes("cuda:1") == 1000 + 300
