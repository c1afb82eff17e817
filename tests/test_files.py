"""Files that are there whole or not at all, and the errors that are said instead of a traceback."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path
from typing import Any

import pytest

from utils.errors import Stopped, UserError, did_you_mean, resume_command
from utils.files import read_json, write_atomic, write_json

# ---- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "raw"), [(b"\x00\xff\r\n", b"\x00\xff\r\n"), ("schön\n", b"sch\xc3\xb6n\n")])
def test_what_is_written_is_there_byte_for_byte(content: bytes | str, raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == raw
    assert os.listdir(path.parent) == ["file"]


def test_writing_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "a longer text")
    write_atomic(path, "short")
    assert path.read_text() == "short"


def test_the_new_file_is_whole_and_on_the_disk_before_it_takes_the_place_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    path.write_text("old")
    really_sync, really_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        seen.append(("sync", os.fstat(handle).st_size if stat.S_ISREG(os.fstat(handle).st_mode) else "folder"))
        really_sync(handle)

    def replace(scratch: str, target: Path) -> None:
        seen.append(("replace", Path(scratch).read_text(), target.read_text(), Path(scratch).parent == tmp_path))
        really_replace(scratch, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(path, "new one")
    assert seen == [("sync", 7), ("replace", "new one", "old", True), ("sync", "folder")]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_full_disk_is_said_and_leaves_the_old_file_alone(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError) as caught:
        write_atomic(path, "new")
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/file/below: "):
        write_atomic(tmp_path / "file" / "below", "text")


def test_an_interruption_leaves_no_scratch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_may_be_read_by_whom_the_user_lets(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "text")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


# ---- JSON ----------------------------------------------------------------------------------------------------------


def test_json_is_readable_and_reads_back(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "ö": {"deep": True}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    text = (tmp_path / "x.json").read_text()
    assert text.startswith('{\n  "a": [\n    1,\n')
    assert text.endswith("}\n")


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [(None, "No such file or directory"), (b'{"a": ', "Expecting value: line 1 column 7"), (b"", "Expecting value"),
     (b'{"a": "\xff"}', "can't decode byte 0xff")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_the_reason(raw: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert said in str(caught.value)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [("resnet200", "; did you mean 'resnet20'?"), ("resnet3", "; did you mean 'resnet32'?"), ("vgg", ""), ("", "")],
)
def test_the_nearest_name_is_offered_where_one_is_near(given: str, said: str) -> None:
    assert did_you_mean(given, ["resnet20", "resnet32", "Conv4"]) == said


def test_names_may_come_from_any_iterable() -> None:
    assert did_you_mean("epoch", iter(["lr", "epochs"])) == "; did you mean 'epochs'?"
    assert did_you_mean("epoch", []) == ""


def test_a_stop_says_why_and_how_to_go_on() -> None:
    stopped = Stopped("stopped by SIGINT", 130, Path("results/a/trial_1"))
    assert str(stopped) == "stopped by SIGINT; go on with: python main.py --resume results/a/trial_1"
    assert stopped.exit_code == 130


def test_the_command_to_go_on_can_be_pasted_into_a_shell() -> None:
    folder = 'results/it\'s a "name" $HOME/trial_1'
    assert shlex.split(resume_command(Path(folder))) == ["python", "main.py", "--resume", folder]


def test_a_stop_is_not_taken_for_an_error_of_the_user() -> None:
    assert not issubclass(Stopped, UserError)
