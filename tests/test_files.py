"""Files: private, whole or absent, and refused by name."""

import resource
import stat
from pathlib import Path

import pytest

from mooring.errors import Unavailable
from mooring.files import make_private_file, make_private_folder, tighten, write_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_made_private_or_tightened(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700
    (tmp_path / "a" / "b").chmod(0o755)
    make_private_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700


def test_files_are_made_private_or_tightened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert make_private_file(path)
    assert mode(path) == 0o600
    path.write_text("kept")
    path.chmod(0o644)
    assert not make_private_file(path)
    assert (mode(path), path.read_text()) == (0o600, "kept")
    assert not tighten(path)


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"1")
    assert mode(path) == 0o600
    write_file(path, b"2", mode=0o644)
    assert (mode(path), path.read_bytes()) == (0o644, b"2")
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path = tmp_path / "file"
    path.symlink_to(victim)
    write_file(path, b"mine")
    assert not path.is_symlink()
    assert victim.read_text() == "untouched"


def test_a_full_disk_leaves_the_old_content_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(Unavailable, match=f"cannot write {path}"):
            write_file(path, bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot use the folder"):
        make_private_folder(tmp_path / "file" / "data")
