"""Which files a path means, and what is left out with a word."""

import os
import socket
from pathlib import Path

import pytest

from lowrank_clone.data.files import find_files
from lowrank_clone.errors import InputError


def found(path: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the others."""
    result = find_files(str(path))
    assert result is not None
    return [Path(file).name for file in result.files], sorted(Path(file).name for file in result.others)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")


def error_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_files(str(path))
    assert str(caught.value).startswith("path: ")
    return str(caught.value)


KINDS = ["a.txt", "b.md", "c.jsonl", "d.json", "e.parquet", "f.txt.gz", "g.md.zst", "h.jsonl.zst", "i.json.gz", "J.TXT"]


def test_every_kind_is_found(folder: Path) -> None:
    write(folder, *KINDS, "sub/k.txt")
    assert found(folder) == (["J.TXT", *KINDS[:-1], "k.txt"], [])
    assert found(folder / "**" / "*.txt")[0] == ["a.txt", "k.txt"]


ABOUT = [
    *("README.md", "readme.txt", "README.en.md", "README-2.md", "LICENSE.txt", "License.md", "licence.md"),
    *("NOTICE.txt", "COPYING.txt", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CITATION.md", "dataset_infos.json"),
    *("dataset_info.json", "CHANGELOG.md"),
]  # fmt: skip


@pytest.mark.parametrize("text", ["a.txt", "a.md", "a.parquet", "readers.md", "licensed.txt", "info.json"])
def test_what_speaks_of_the_texts_is_none_of_them(folder: Path, text: str) -> None:
    write(folder, text, *ABOUT, "sub/README.md")
    assert found(folder) == ([text], sorted([*ABOUT, "README.md"]))
    assert found(folder / "*") == ([text], sorted(ABOUT))
    assert found(folder / "README.md") == (["README.md"], [])  # its own path is meant


def test_a_folder_of_nothing_but_a_readme(folder: Path) -> None:
    write(folder, "README.md")
    message = error_of(folder)
    assert "README.md is about a folder's texts; give its own path if it is meant" in message


def test_what_is_no_file_is_never_opened(folder: Path, monkeypatch) -> None:
    write(folder, "a.txt", "c.csv")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # the path of a socket may have 107 bytes
        server.bind("socket.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "folder.txt").mkdir()
    special = ["gone.txt", "pipe.txt", "self.txt", "socket.txt", "zero.txt"]
    assert found(folder) == (["a.txt"], sorted(["c.csv", *special]))
    assert found(folder / "*.txt") == (["a.txt"], special)
    for name in special:
        assert "is no regular file" in error_of(folder / name)
    for path in ("/dev/zero", "/dev/stdin", "/dev/null"):
        assert "is no regular file" in error_of(Path(path))


def test_hidden_files_are_never_looked_at(folder: Path) -> None:
    write(folder, "a.txt", ".hidden.txt", ".git/b.txt", "sub/.x/c.txt", "sub/d.txt", "sub/.e.txt")
    assert found(folder) == (["a.txt", "d.txt"], [])
    assert found(folder / "**") == (["a.txt", "d.txt"], [])
    assert found(folder / "*" / "*.txt") == (["d.txt"], [])
    assert "holds no files" in error_of(folder / ".*")
    assert "holds no files" in error_of(folder / ".g*" / "*.txt")
    assert found(folder / ".git") == (["b.txt"], [])  # its own path is meant
    assert found(folder / ".git" / "*.txt") == (["b.txt"], [])


def test_folders_that_are_linked_to_are_left_out_with_a_word(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "b.txt")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    assert "a folder that is only linked to is not entered" in error_of(folder)
    write(folder, "a.txt")
    assert found(folder) == (["a.txt"], ["link", "round"])
    assert found(folder / "link") == (["b.txt"], [])


def test_brackets_are_literal_where_the_path_exists(folder: Path) -> None:
    inner = folder / "data[1]"
    write(inner, "a[1].txt", "a1.txt", "b1.txt")
    assert found(inner / "a[1].txt")[0] == ["a[1].txt"]
    assert found(inner / "[ab]1.txt")[0] == ["a1.txt", "b1.txt"]
    assert len(found(inner)[0]) == 3
    assert "holds no files" in error_of(inner / "z[1].txt")


def test_a_name_of_the_hub_is_no_path() -> None:
    assert find_files("owner/name") is None and find_files("name") is None
    for path in (
        "./owner/name",
        "/owner/name",
        "a/b/c",
        "owner/name.jsonl",
        "name.txt.zst",
        "owner/",
        "../no-such-folder",
    ):
        assert "no such file or folder" in error_of(path)
