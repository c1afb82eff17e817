"""One process a folder."""

import pytest

from utils.errors import UserError
from utils.run.lock import is_locked, locked


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path, patience=0):
            pass
        assert is_locked(tmp_path)  # the other's failure has freed nothing
    assert not is_locked(tmp_path)
