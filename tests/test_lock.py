"""One process a folder."""

import errno

import pytest

from tests.conftest import raising
from utils.errors import UserError
from utils.run.lock import is_locked, locked


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path, patience=0):
            pass
        assert is_locked(tmp_path)  # the other's failure has freed nothing
    assert not is_locked(tmp_path)


def test_a_file_system_without_locks_is_told_of_and_other_errors_stay_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.acquire", raising(OSError(errno.ENOLCK, "No locks available")))
    with pytest.warns(UserWarning, match="has no locks"), locked(tmp_path):
        pass
    monkeypatch.setattr("filelock.FileLock.acquire", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass
