import os
from pathlib import Path
from typing import Any

import pytest

from downmix.train import writable
from downmix.train.writable import check_file, check_folder


def test_what_can_be_written_is_made_room_for_and_stays_as_it_is(tmp_path: Path) -> None:
    check_folder(tmp_path / "a b" / "é")
    check_folder(tmp_path / "a b" / "é")
    assert list((tmp_path / "a b" / "é").iterdir()) == []
    check_file(tmp_path / "new" / "x.csv")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "x.csv").write_text("kept")
    check_file(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "kept"
    check_file(Path("x.csv"))
    check_file(Path(os.devnull))
    os.mkfifo(tmp_path / "pipe")
    check_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("check", "path", "sentence"),
    [
        (
            check_folder,
            "file",
            r"^output must be a folder that can be written, got {0}/file \({0}/file is a file\); choose",
        ),
        (check_folder, "file/a/b", r"got {0}/file/a/b \({0}/file is a file\); choose another, or make it writable"),
        (
            check_file,
            "file/a.csv",
            r"^output must be a file that can be written, got .* \({0}/file is a file\); choose",
        ),
        (
            check_file,
            "folder",
            r"^output must be a file that can be written, got {0}/folder, which is a folder; add the",
        ),
    ],
)
def test_a_file_and_a_folder_in_each_others_place(check: Any, path: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=sentence.format(tmp_path)):
        check(tmp_path / path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux, where nobody may write there, not even root")
@pytest.mark.parametrize(
    ("check", "path"), [(check_folder, "/proc/a"), (check_file, "/proc/a.csv"), (check_folder, "/proc")]
)
def test_a_place_that_nobody_can_write(check: Any, path: str) -> None:
    with pytest.raises(
        ValueError, match=rf"got {path} \(/proc: No such file or directory\); choose another, or make it"
    ):
        check(Path(path))


def test_a_file_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.csv").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        ValueError, match=r"^plot must be a file .*a.csv \(Permission denied\); choose another, or make"
    ):
        writable.check_file(tmp_path / "a.csv", "plot")
