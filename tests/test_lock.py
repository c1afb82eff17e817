"""One process a folder."""

import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.run.lock import is_locked, locked

HOLD = """
import pathlib, sys, time
from utils.run.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path, patience=0):
            pass
        assert is_locked(tmp_path)  # the other's failure has freed nothing
    assert not is_locked(tmp_path)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert is_locked(tmp_path)
        holder.kill()
    assert not is_locked(tmp_path)
