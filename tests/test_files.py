"""Files that are there whole or not at all, and the errors that are said instead of a traceback."""

import errno
import os
import re
import shlex
import stat
import tracemalloc
from pathlib import Path

import pytest
import torch
from conftest import raising, same_bits
from safetensors.torch import load_file
from toys import complaint

from utils.errors import UserError, resume_command
from utils.files import files_below, read_json, safetensors_header, safetensors_parts, write_atomic, write_json


@pytest.mark.parametrize(("content", "raw"), [(b"\x00\xff\r\n", b"\x00\xff\r\n"), ("schön\n", b"sch\xc3\xb6n\n")])
def test_what_is_written_is_there_byte_for_byte(content, raw, tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for given in ("a longer text that is replaced", content):
        write_atomic(path, given)
    assert path.read_bytes() == raw
    assert os.listdir(path.parent) == ["file"]


def test_the_new_file_is_whole_and_on_the_disk_before_it_takes_the_place_of_the_old(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    path.write_text("old")

    def sync(handle: int) -> None:
        seen.append(("sync", os.fstat(handle).st_size if stat.S_ISREG(os.fstat(handle).st_mode) else "folder"))

    def replace(scratch: str, target: Path) -> None:
        seen.append(("replace", Path(scratch).read_text(), target.read_text(), Path(scratch).parent == tmp_path))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(path, "new one")
    assert seen == [("sync", 7), ("replace", "new one", "old", True), ("sync", "folder")]


def test_files_are_found_behind_links_once_though_a_link_leads_round(tmp_path):
    for place in ("in/a", "elsewhere/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x").touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "in")
    found = files_below(tmp_path / "in", "x", "y")
    assert [str(path.relative_to(tmp_path)) for path in found] == ["in/a/x", "in/link/b/x"]


def test_a_file_is_written_where_folders_cannot_be_synchronised(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=repr)
def test_a_full_disk_is_said_and_like_an_interruption_leaves_the_old_file_alone(step, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    monkeypatch.setattr(os, step, raising(error))
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        write_atomic(path, "new")
    assert str(caught.value) == (f"cannot write {path}: No space left on device" if error is FULL else "")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_of_tensors_is_written_without_a_copy_of_them(tmp_path):
    path, tensors = tmp_path / "file", {
        "large": torch.arange(3 * 2**20).to(torch.uint8).view(3, -1), "of": torch.tensor([True, False, True]),
        "none": torch.empty(0, 2, dtype=torch.int64), "some": torch.tensor([5, -6]),
    }  # fmt: skip
    tracemalloc.start()
    write_atomic(path, safetensors_parts(tensors, {"ö": '"'}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert same_bits(load_file(path), tensors) and safetensors_header(path) == {"ö": '"'}
    assert peak < 2**20


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_may_be_read_by_whom_the_user_lets(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "text")
    finally:
        assert os.umask(before) == umask  # left as it was
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_json_is_readable_and_reads_back_and_what_is_none_is_not_written(tmp_path):
    path, content = tmp_path / "x.json", {"a": [1, 2.5, None], "ö": {"deep": True}}
    write_json(path, content)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == content
    assert path.read_text().startswith('{\n  "a": [\n    1,\n')
    assert path.read_text().endswith("}\n")
    before = path.stat().st_ino
    write_json(path, content)
    assert path.stat().st_ino == before  # nothing to write: it may lie where nothing can be written


@pytest.mark.parametrize(("raw", "said"), [(b"[", "value: line 1 column 2"), (b"\xff", "can't decode byte 0xff")])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(raw, said, tmp_path):
    path = tmp_path / "x.json"
    assert re.match(f"cannot read {path}: .*No such file or directory", complaint(read_json, path))
    path.write_bytes(raw)
    assert re.match(f"cannot read {path}: .*{said}", complaint(read_json, path))


def test_the_command_to_go_on_can_be_pasted_into_a_shell():
    folder = 'results/it\'s a "name" $HOME/trial_1'
    assert shlex.split(resume_command(Path(folder))) == ["python", "main.py", "--resume", folder]
