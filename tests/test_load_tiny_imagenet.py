"""load_tiny_imagenet.sh, on a small archive of the same make: downloads, goes on, refuses, arranges, is done once."""

import hashlib
import os
import shutil
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import PROJECT
from small_sets import put_tiny_imagenet

from args_helper import Config
from data.load import load_data

NAME = "tiny-imagenet-200"
INSTALLED = [tool for tool in ("curl", "wget") if shutil.which(tool)]
TOOLS = "bash cut dirname find grep md5sum mkdir mktemp mv rm rmdir unzip wc".split()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An archive of 2 classes, 4 images of each for training and 3 for testing."""
    root = tmp_path_factory.mktemp("original")
    put_tiny_imagenet(root, train=4, val=3, original=True)
    return Path(shutil.make_archive(str(root / NAME), "zip", root, NAME))


class Reply(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.begun.append(asked)
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and self.server.resumes else 0
        content, size = self.server.content[start:], len(self.server.content)
        if start >= size:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.wfile.write(content[: self.server.cut])

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server(original):
    """Serves the archive; keeps where each request wanted to begin, and may break its replies off."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Reply) as server:
        server.content, server.resumes, server.begun, server.cut = original.read_bytes(), True, [], None
        server.url = f"http://127.0.0.1:{server.server_port}/{NAME}.zip"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def call(folder, url, path="/usr/bin:/bin", **environment):
    return subprocess.run(
        ["/bin/bash", PROJECT / "load_tiny_imagenet.sh", folder],
        env={"PATH": path, "TINY_IMAGENET_URL": url, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def only(tool, folder):
    """A folder for PATH that has, of curl and wget, this one only."""
    folder.mkdir()
    for name in [*TOOLS, *filter(None, [tool])]:
        os.symlink(shutil.which(name), folder / name)
    return str(folder)


ARRANGED = sorted(
    [f"train/n0000000{label}/{number}.JPEG" for label in (0, 1) for number in range(4)]
    + [f"val/n0000000{number % 2}/{number}.JPEG" for number in range(6)]
    + ["test/images/0.JPEG", "test/images/1.JPEG", "wnids.txt"]
)


def arranges(folder, url, path="/usr/bin:/bin", **environment):
    """Call, and check that the whole set and nothing else is there; return what is said."""
    done = call(folder, url, path, **environment)
    assert done.returncode == 0, done.stderr
    assert [child.name for child in folder.iterdir()] == [NAME]
    found = sorted(str(file.relative_to(folder / NAME)) for file in (folder / NAME).rglob("*") if file.is_file())
    assert found == ARRANGED
    return done.stdout


def test_the_set_is_arranged_loads_and_is_left_alone_by_a_second_call(original, tmp_path):
    folder = tmp_path / "sets"
    told = arranges(folder, f"file://{original}")
    assert told.endswith(f"{folder / NAME}: 8 images for training, 6 for testing\n")
    with pytest.warns(UserWarning, match="but 2 were found"):
        splits = load_data(Config(dataset="TinyImageNet", data=str(folder), device="cpu", use_full_data=True))
    assert (len(splits.train.images), len(splits.test)) == (8, 6)
    again = call(folder, "file:///nowhere.zip")
    assert (again.returncode, again.stdout) == (0, f"{folder / NAME} is there: nothing to do\n")


def test_a_word_that_is_an_option_is_answered_by_how_to_call_it():
    asked = call("--help", "file:///nowhere.zip")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith("Downloads Tiny ImageNet") and asked.stderr.endswith(" given too.\n")


def test_what_a_killed_call_left_is_removed_by_a_later_one(original, tmp_path):
    old, young = (tmp_path / f".tiny-imagenet-200.{name}" for name in ("abcdef", "ghijkl"))
    for left in (old, young):
        (left / "train").mkdir(parents=True)
    os.utime(old, (0, 0))
    assert call(tmp_path, f"file://{original}").returncode == 0
    assert not old.exists() and young.exists()  # the young one may be another call's


@pytest.mark.parametrize("tool", INSTALLED)
def test_a_download_that_was_cut_off_is_gone_on_with(server, tool, tmp_path):
    path, folder, server.cut = only(tool, tmp_path / "bin"), tmp_path / "sets", 1000
    # wget tries again by itself; either way all that it gets is cut.
    first = call(folder, server.url, path)
    assert first.returncode == 1
    assert first.stderr.endswith(f"the download of {server.url} did not end; run this again to go on with it\n")
    there = (folder / f"{NAME}.zip.part").stat().st_size
    assert 0 < there < len(server.content) and not (folder / NAME).exists()
    server.cut, server.begun = None, []
    arranges(folder, server.url, path)
    assert server.begun == [f"bytes={there}-"]


@pytest.mark.parametrize("tool", INSTALLED)
def test_a_server_that_cannot_go_on_is_asked_for_all_of_it(server, tool, tmp_path):
    path, folder, server.resumes = only(tool, tmp_path / "bin"), tmp_path / "sets", False
    folder.mkdir()
    (folder / f"{NAME}.zip.part").write_bytes(server.content[:1000])
    arranges(folder, server.url, path)
    assert server.begun[0] == "bytes=1000-"


@pytest.mark.parametrize("tool", INSTALLED)
def test_a_whole_file_that_is_damaged_does_not_stop_every_later_call(server, tool, tmp_path):
    path, folder = only(tool, tmp_path / "bin"), tmp_path / "sets"
    folder.mkdir()
    (folder / f"{NAME}.zip.part").write_bytes(b"?" * len(server.content))
    first = call(folder, server.url, path)
    assert first.returncode == 0 or "it was removed" in first.stderr  # wget takes it for the whole, and it is refused
    if first.returncode:
        arranges(folder, server.url, path)
    assert (folder / NAME / "train").is_dir()


def test_a_download_that_had_ended_is_not_made_again(original, tmp_path):
    shutil.copy(original, tmp_path / f"{NAME}.zip.part")
    arranges(tmp_path, "file:///nowhere.zip")


def refused(folder, archive, says, **environment):
    """Call, and check that nothing is left but the folder."""
    done = call(folder, f"file://{archive}", **environment)
    assert done.returncode == 1
    assert f"{says}; it was removed" in done.stderr and done.stderr.count("error:") == 1
    assert list(folder.iterdir()) == []


def test_an_archive_with_another_checksum_is_refused(original, tmp_path):
    refused(tmp_path / "sets", original, "is not the one with MD5 0123", TINY_IMAGENET_MD5="0123")
    right = hashlib.md5(original.read_bytes()).hexdigest()
    arranges(tmp_path / "sets", f"file://{original}", TINY_IMAGENET_MD5=right)


LINK = zipfile.ZipInfo(f"{NAME}/train/n00000000/images/evil.JPEG")
LINK.create_system, LINK.external_attr = 3, 0o120777 << 16


@pytest.mark.parametrize(
    ("member", "says"),
    [(None, "is damaged"), (LINK, "holds links"),
     *((name, f"would write outside {NAME}: {name}")
       for name in (f"{NAME}/../../evil.txt", "../evil.txt", "evil.txt", f"{NAME}/train/.."))],
)  # fmt: skip
def test_an_archive_that_is_damaged_or_would_write_elsewhere_is_refused(original, member, says, tmp_path):
    archive = Path(shutil.copy(original, tmp_path / "other.zip"))
    if member is None:
        raw = original.read_bytes()
        archive.write_bytes(raw[:200] + bytes(200) + raw[400:])
    else:
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr(member, "/etc/passwd")
    refused(tmp_path / "sets", archive, says)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("lines", "says"),
    [("0.JPEG\tn00000000\n", "some images of val have no annotation"),
     ("9.JPEG\tn00000000\n", "names '9.JPEG' of class 'n00000000', which is not there"),
     ("0.JPEG\tn77\n", "names '0.JPEG' of class 'n77', which is not there"),
     ("0.JPEG\t..\n", "names '0.JPEG' of class '..'"), ("0.JPEG\n", "names '0.JPEG' of class ''"),
     ("0.JPEG\t../train/n00000000\n", "names '0.JPEG' of class '../train/n00000000'"),
     ("../../wnids.txt\tn00000000\n", "names '../../wnids.txt'")],
)  # fmt: skip
def test_annotations_that_do_not_fit_leave_nothing_half_arranged(lines, says, tmp_path):
    folder = put_tiny_imagenet(tmp_path / "root", train=1, val=1, original=True)
    (folder / "val/val_annotations.txt").write_text(lines)
    done = call(tmp_path / "sets", "file://" + shutil.make_archive(tmp_path / NAME, "zip", tmp_path / "root", NAME))
    assert done.returncode == 1 and says in done.stderr
    assert [path.name for path in (tmp_path / "sets").iterdir()] == [f"{NAME}.zip.part"]


def test_what_is_missing_is_said(tmp_path):
    path = only(None, tmp_path / "bin")
    assert "neither curl nor wget is there" in call(tmp_path / "sets", "http://nowhere", path).stderr
    (tmp_path / "bin" / "unzip").unlink()
    assert "unzip is not installed" in call(tmp_path / "sets", "http://nowhere", path).stderr
