"""Making shards: the same bytes however it is done, and nothing made twice."""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from tiny_tokenizer import tiny_tokenizer

from lowrank_clone.data import make_shards as making
from lowrank_clone.data.config import DataConfig
from lowrank_clone.data.make_shards import make_shards
from lowrank_clone.data.readers import parts as cutting
from lowrank_clone.data.readers.documents import Document, HubPiece, Part
from lowrank_clone.data.readers.hub import HubInfo
from lowrank_clone.data.sharding import job as jobs
from lowrank_clone.data.sharding import meter, parts
from lowrank_clone.data.shards import TokenSource
from lowrank_clone.errors import InputError

EOS = 257


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 700 bytes."""
    monkeypatch.setattr(jobs, "split_source", lambda source: cutting.split_source(source, 700))


@pytest.fixture
def lines(folder: Path) -> Path:
    """60 documents in two files, eight parts."""
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"{name}{i} " + "word " * (i % 40)}) for i in range(30)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def make(
    path: Path,
    tmp_path: Path,
    *,
    workers: int = 1,
    tokenizer: Any = None,
    vocab_size: int = 258,
    mend: bool = False,
    **options: Any,
) -> TokenSource:
    of_config = {name: options.pop(name) for name in ("on_error", "num_proc") if name in options}
    config = DataConfig(sources=[{"path": str(path), **options}], shards=str(tmp_path / "shards"), **of_config)
    sources = [(f"data.sources.{i}", source) for i, source in enumerate(config.sources)]
    return make_shards(sources, config, tokenizer or tiny_tokenizer(), vocab_size, workers=workers, mend=mend)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name != ".lock"
    }


def test_all_documents_in_order(lines: Path, tmp_path: Path) -> None:
    source = make(lines, tmp_path)
    assert len(source.manifest.shards) == 8
    texts = [json.loads(row)["text"] for name in "ab" for row in (lines / f"{name}.jsonl").read_text().splitlines()]
    alphabet = tiny_tokenizer()
    expected = [alphabet(text)["input_ids"] + [EOS] for text in texts]
    np.testing.assert_array_equal(source.read(0, source.tokens), np.concatenate(expected))
    assert source.ends().tolist() == np.cumsum([len(ids) for ids in expected]).tolist()
    assert len(set(source.hashes().tolist())) == len(set(texts)) == 60
    assert not [path.name for path in source.folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_bytes(
    lines: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    one = make(lines, tmp_path)
    capfd.readouterr()
    source = make(lines, tmp_path / "other", workers=workers)
    assert contents(source.folder) == contents(one.folder)
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("tokenising: ")]
    assert said == [
        f"data.sources.0: tokenising {lines} into {source.folder}, 8 shards",
        f"data.sources.0: made 8 shards; 8 of 8 are in {source.folder}",
    ]
    # The first bad row of all is one error, whoever meets it, and those parts are kept that are good.
    path = lines / "b.jsonl"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(InputError, match=r"^data.sources.0.path: .*b.jsonl line 31: malformed JSON"):
        make(lines, tmp_path / "other", workers=workers)
    assert not (source.folder / "manifest.json").exists() and len(list(source.folder.glob("*.ds"))) > 3
    assert "Traceback" not in capfd.readouterr().err


def test_two_and_four_bytes(lines: Path, tmp_path: Path) -> None:
    small, large = make(lines, tmp_path), make(lines, tmp_path, vocab_size=2**16)
    assert small.folder != large.folder
    np.testing.assert_array_equal(small.read(0, small.tokens), large.read(0, large.tokens))
    size = sum(path.stat().st_size for path in small.folder.glob("*.ds"))
    assert size == 2 * small.tokens == sum(path.stat().st_size for path in large.folder.glob("*.ds")) / 2


def test_what_is_there_is_used_again(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(parts, "_DOUBT", 0)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    first = make(lines, tmp_path)
    before = contents(first.folder)
    assert f"tokenising {lines} into {first.folder}, {len(first.manifest.shards)} shards" in capsys.readouterr().err
    monkeypatch.setattr(making, "locked", None)  # nothing is even locked
    again = make(lines, tmp_path, weight=3.0, repeat=True)  # the mix decides no ids
    assert capsys.readouterr().err.splitlines() == [
        f"data.sources.0: using {len(first.manifest.shards)} shards of before, in {first.folder}"
    ]
    assert (again.digest, contents(again.folder)) == (first.digest, before)


@pytest.mark.parametrize(
    "change", [{"special_tokens": "parse"}, {"max_documents": 7}, {"filter": {"text": {"min": "b"}}}]
)
def test_what_decides_ids_makes_other_shards(lines: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    assert make(lines, tmp_path).folder != make(lines, tmp_path, **change).folder


def test_only_the_parts_of_an_edited_file_are_made_again(lines: Path, tmp_path: Path, capsys: Any) -> None:
    """The edit keeps size and times."""
    source = make(lines, tmp_path)
    before = {path.name: path.stat().st_ino for path in source.folder.glob("*.ds")}
    path = lines / "b.jsonl"
    text, times = path.read_text(), path.stat()
    path.write_text(text.replace("b29 ", "B29 "))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    again = make(lines, tmp_path)
    assert "b.jsonl was touched since its text was tokenised; its shards" in capsys.readouterr().err
    after = {path.name: path.stat().st_ino for path in source.folder.glob("*.ds")}
    of_b = {
        name for name in before if source.manifest.shards[int(name[:5])].stamps == source.manifest.shards[-1].stamps
    }
    changed = {name for name in before if before[name] != after[name]}
    assert changed and changed <= of_b  # all of its parts lie within the margin here
    fresh = make(lines, tmp_path / "fresh")
    assert (again.digest, contents(again.folder)) == (fresh.digest, contents(fresh.folder))
    assert again.digest != source.digest


def test_a_file_that_was_only_touched_is_not_tokenised_again(lines: Path, tmp_path: Path) -> None:
    source = make(lines, tmp_path)
    before = {path.name: path.stat().st_ino for path in source.folder.glob("*.ds")}
    os.utime(lines / "a.jsonl")
    assert make(lines, tmp_path).digest == source.digest
    assert before == {path.name: path.stat().st_ino for path in source.folder.glob("*.ds")}


def test_more_and_fewer_files(lines: Path, tmp_path: Path) -> None:
    make(lines, tmp_path)
    (lines / "c.jsonl").write_text(json.dumps({"text": "new"}))
    assert contents(make(lines, tmp_path).folder) == contents(make(lines, tmp_path / "fresh").folder)
    (lines / "a.jsonl").unlink()
    assert contents(make(lines, tmp_path).folder) == contents(make(lines, tmp_path / "fresher").folder)


def test_malformed_rows(lines: Path, tmp_path: Path) -> None:
    with open(lines / "a.jsonl", "a") as file:
        file.write('{"text": 3}\n{"text": "  "}\n')
    with pytest.raises(InputError, match=r"data\.sources\.0\.text_column: .*a\.jsonl line 31: the text is of type int"):
        make(lines, tmp_path)
    source = make(lines, tmp_path, on_error="skip")
    assert (source.manifest.dropped, source.documents) == ({"malformed": 1, "blank": 1}, 60)
    assert "a.jsonl line 31: the text is of type int" in str(source.manifest.first_error)
    with pytest.raises(InputError, match=r"data\.sources\.0\.text_column: .*a\.jsonl line 31"):
        make(lines, tmp_path)


def test_truncated_and_altered_shards_are_refused_and_mended(lines: Path, tmp_path: Path, capsys: Any) -> None:
    source = make(lines, tmp_path)
    before = contents(source.folder)
    for name, damage in (("00001.ds", b""), ("00000.ds.index", None), ("00002.ds", before["00002.ds"][::-1])):
        path = source.folder / name
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(InputError, match=rf"data\.sources\.0: .*{name} .*`lrc data RECIPE` makes it again"):
            make(lines, tmp_path)
        capsys.readouterr()
        mended = make(lines, tmp_path, mend=True)
        assert f"{path} " in capsys.readouterr().err
        assert (mended.digest, contents(mended.folder)) == (source.digest, before)


def test_a_full_disk(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = TokenizedFile.write_bytes, []

    def full(self: TokenizedFile, data: bytes, doc_ends: Any = None) -> None:
        calls.append(data)
        if len(calls) == 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, data, doc_ends)

    monkeypatch.setattr(TokenizedFile, "write_bytes", full)
    with pytest.raises(InputError, match=r"data\.sources\.0: the shards in .* can't be written \(No space left"):
        make(lines, tmp_path)
    kept = [path for path in (tmp_path / "shards").rglob("*.ds")]
    assert kept and not any(path.parent.name.startswith(".") for path in kept)
    assert contents(make(lines, tmp_path).folder) == contents(make(lines, tmp_path / "fresh").folder)


def test_a_disk_that_is_too_small(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"will take about 0.0 GB, and 0.0 GB are free; free some space there"):
        make(lines, tmp_path)
    monkeypatch.setattr(meter.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    assert make(lines, tmp_path).documents == 60


def test_a_folder_that_cannot_be_made(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(InputError, match=r"the shards in .* can't be written \(Not a directory"):
        make(lines, tmp_path)


def test_a_file_that_changes_while_it_is_read(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parts.read_documents

    def slow(*arguments: Any) -> Any:
        yield from real(*arguments)
        os.utime(lines / "a.jsonl")

    monkeypatch.setattr(parts, "read_documents", slow)
    with pytest.raises(InputError, match=r"data.sources.0.path: .*a.jsonl changed while it was read"):
        make(lines, tmp_path)


def test_a_source_that_keeps_no_document_is_refused(lines: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": "  ", "n": 3})] * 10 + [json.dumps({"text": "some text", "n": 1})] * 30
    (lines / "a.jsonl").write_text("\n".join(rows))
    (lines / "b.jsonl").unlink()
    with pytest.raises(InputError) as caught:
        make(lines, tmp_path, filter={"n": {"min": 2}})
    assert str(caught.value).startswith(f"data.sources.0.path: `{lines}` holds no text (")
    assert "30 rows left out: filter n" in str(caught.value) and "10 rows left out: blank" in str(caught.value)


def test_a_hub_dataset_is_read_no_further_than_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files of 40 documents of 10 tokens; of each a third of what is wanted is read."""
    pieces = [Part((HubPiece("some/dataset", i, i + 1, 3, "c0ffee"),), 0) for i in range(3)]
    given: list[int] = []

    def read(part: Part, *_: Any) -> Iterator[Document]:
        for i in range(40):
            given.append(part.pieces[0].start)
            yield Document(text=f"{part.pieces[0].start} text {i:02}")

    monkeypatch.setattr(jobs, "split_source", lambda source: pieces)
    monkeypatch.setattr(jobs, "hub_info", lambda source: HubInfo("c0ffee", "odc-by"))
    monkeypatch.setattr(parts, "read_documents", read)
    monkeypatch.setattr(parts, "_BATCH", 4)
    config = DataConfig(sources=[{"path": "some/dataset", "revision": "main"}], shards=str(tmp_path))
    sources = [("data.sources.0", config.sources[0])]
    source = make_shards(sources, config, tiny_tokenizer(), 258, needed={"data.sources.0": 300}, workers=1)[0]
    assert [shard.documents for shard in source.manifest.shards] == [10, 10, 10] and source.tokens == 300
    assert len(given) == 3 * 12 and not source.manifest.complete  # whole batches
    assert (source.manifest.revision, source.manifest.licence) == ("c0ffee", "odc-by")
    assert source.folder.name.startswith("some-dataset-")
    again = make_shards(sources, config, tiny_tokenizer(), 258, needed={"data.sources.0": 300}, workers=1)[0]
    assert again.digest == source.digest and len(given) == 36
    whole = make_shards(sources, config, tiny_tokenizer(), 258, workers=1)[0]
    assert whole.documents == 120 and whole.manifest.complete and whole.folder != source.folder


def test_masks_go_with_their_tokens(folder: Path, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "answer " * i}] for i in range(9)]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    tokenizer = tiny_tokenizer(chat=True)
    source = make(folder, tmp_path, tokenizer=tokenizer, chat_column="messages", loss_on="assistant")
    stream, masked = source.read(0, source.tokens), source.masked(0, source.tokens)
    learned = bytes(stream[~masked & (stream < 256)].tolist())
    alphabet = {token: i for token, i in tokenizer.get_vocab().items() if i < 256}
    expected = "".join("answer " * i for i in range(9)).replace(" ", "Ġ")
    assert bytes(alphabet[letter] for letter in expected) in learned.replace(bytes([alphabet["Ċ"]]), b"")
    assert masked.any() and not masked.all()
    plain = make(folder, tmp_path, tokenizer=tokenizer, chat_column="messages")
    assert plain.folder != source.folder and not plain.masked(0, plain.tokens).any()
    np.testing.assert_array_equal(plain.read(0, plain.tokens), stream)


@pytest.mark.parametrize("name", ["a::b", "s3:~", "[x]*", "ü \n%s", "-"])
def test_folders_with_odd_names(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "a.txt").write_text("text")
    source = make(folder / name, tmp_path / name)
    assert source.documents == 1 and source.folder.parent == tmp_path / name / "shards"


def test_shards_that_may_only_be_read(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_DOUBT", 0)
    time.sleep(0.02)
    first = make(lines, tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read only")

    for owner, method in ((Path, "write_text"), (Path, "unlink"), (Path, "mkdir"), (os, "replace")):
        monkeypatch.setattr(owner, method, refuse)
    assert make(lines, tmp_path).digest == first.digest


def test_what_a_killed_run_left_is_removed(lines: Path, tmp_path: Path) -> None:
    source = make(lines, tmp_path)
    before = contents(source.folder)
    (source.folder / "manifest.json").unlink()
    for left in (".run", ".00001-abcd", "00099.ds"):
        (source.folder / left).mkdir() if left[0] == "." else (source.folder / left).write_text("x")
    (source.folder / ".00001.json.123").write_text("{")
    assert contents(make(lines, tmp_path).folder) == before


def test_many_tiny_documents(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "split_source", cutting.split_source)
    (folder / "a.jsonl").write_text("\n".join(f'{{"text": "{i}"}}' for i in range(30_000)))
    source = make(folder, tmp_path)
    assert source.documents == 30_000 and len(source.manifest.shards) == 1
    assert source.ends()[-1] == source.tokens == sum(len(str(i)) + 1 for i in range(30_000))
