"""Hub datasets: streamed in parts, at one commit, and never more of them than is read."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub

from lowrank_clone.data.check import check_sources
from lowrank_clone.data.config import DataConfig, SourceConfig
from lowrank_clone.data.readers.hub import HubInfo, hub_info
from lowrank_clone.data.readers.parts import split_source
from lowrank_clone.data.readers.reading import read_documents
from lowrank_clone.errors import InputError
from lowrank_clone.recipe.load import load_recipe

NAME = "owner/set"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path / "hub", monkeypatch)


def tables(hub: FakeHub, files: int, rows: int = 20) -> list[str]:
    """Files of rows with scores 0 to 4; every text of theirs in order."""
    texts = [f"file {i} row {j}" for i in range(files) for j in range(rows)]
    for i in range(files):
        own = texts[rows * i : rows * (i + 1)]
        table = {"text": own, "meta": [{"score": j % 5, "body": text.upper()} for j, text in enumerate(own)]}
        pq.write_table(pa.table(table), hub.folder(NAME) / f"{i}.parquet")
    return texts


def read(source: SourceConfig, strict: bool = True) -> list:
    return [document for part in split_source(source) for document in read_documents(part, source, strict)]


def test_its_files_are_its_parts_in_order_and_of_one_commit(hub: FakeHub) -> None:
    texts = tables(hub, 3)
    source = SourceConfig(path=NAME, name="en", split="train")
    parts = split_source(source)
    assert [(p.start, p.stop, p.count) for part in parts for p in part.pieces] == [(0, 1, 3), (1, 2, 3), (2, 3, 3)]
    documents = read(source)
    assert [d.text for d in documents] == texts
    assert str(documents[21].place) == "owner/set file 2 of 3 row 1"
    assert set(hub.loaded) == {(NAME, "en", "train", "a" * 40)}
    read(SourceConfig(path=NAME, revision="v1"))
    assert hub.loaded[-1] == (NAME, None, "train", "v1")
    assert hub_info(source) == HubInfo("a" * 40, "apache-2.0")


def test_filters_and_nested_columns(hub: FakeHub) -> None:
    texts = tables(hub, 2)
    source = SourceConfig(path=NAME, text_column="meta.body", filter={"meta.score": {"min": 4}})
    documents = read(source)
    assert [d.text for d in documents if d.text] == [text.upper() for i, text in enumerate(texts) if i % 5 == 4]
    assert {d.dropped for d in documents if not d.text} == {"filter meta.score"}


def test_many_files_are_at_most_so_many_parts(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tables(hub, 7, rows=3)
    monkeypatch.setattr("lowrank_clone.data.readers.hub._PARTS", 3)
    source = SourceConfig(path=NAME)
    assert len(split_source(source)) == 3
    assert [d.text for d in read(source)] == texts
    limited = SourceConfig(path=NAME, max_documents=5)
    assert len(split_source(limited)) == 1 and [d.text for d in read(limited)] == texts[:5]


def test_rows_of_json_with_other_columns(hub: FakeHub) -> None:
    rows = [{"text": "a", "score": 5}, {"text": "b"}, {"text": None, "score": 5}, {"text": "d", "score": 5}]
    (hub.folder(NAME) / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = SourceConfig(path=NAME, filter={"score": {"min": 5}})
    assert [(d.text, d.dropped, bool(d.error)) for d in read(source, strict=False)] == [
        ("a", None, False),
        (None, "filter score", False),
        (None, None, True),
        ("d", None, False),
    ]


def test_only_what_is_read_is_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten documents of the second of four files: the files after it and its later batches are never opened."""
    fetched: list[str] = []

    def rows(files: list[int]) -> Iterator[dict]:
        for file in files:
            for row in range(1000):
                fetched.append(f"{file}/{row}")
                yield {"text": f"{file}/{row}"}

    def load(*_: object, **__: object) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": [0, 1, 2, 3]})

    tables(hub, 1)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = SourceConfig(path=NAME)
    stream = read_documents(split_source(source)[1], source, True)
    fetched.clear()
    assert [next(stream).text for _ in range(10)] == [f"1/{i}" for i in range(10)]
    assert len(fetched) <= 11 and all(name.startswith("1/") for name in fetched)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def error_of(source: SourceConfig, **rest: object) -> str:
    with pytest.raises(InputError) as caught:
        check_sources(DataConfig(sources=[source], **rest))
    message = str(caught.value)
    assert message.startswith("data.sources.0.") and message.isprintable()
    return message


def test_name_that_is_no_hub_dataset(hub: FakeHub) -> None:
    message = error_of(SourceConfig(path="owner/missing", name="en", revision="v2"))
    assert "path: `owner/missing` is neither an existing file or folder nor a Hub dataset" in message
    assert "name=en, split=train, revision=v2 (ConnectionError: no network); check the spelling" in message


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_column": "body"}, "text_column: owner/set: no column `body`; expected one of the columns text, meta"),
        ({"text_column": "meta.text"}, "text_column: owner/set file 1 of 2 row 0: no column `meta.text`; expected"),
        ({"filter": {"int_score": {"min": 4}}}, "filter: owner/set: no column `int_score`; expected one of"),
        ({"filter": {"text": {"min": 4}}}, "filter: owner/set file 1 of 2 row 0: column `text`: the value is 'file 0"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there(hub: FakeHub, fields: dict, message: str, on_error: str) -> None:
    tables(hub, 2)
    assert message in error_of(SourceConfig(path=NAME, **fields), on_error=on_error)


def test_reading_that_breaks_off_is_one_line(hub: FakeHub) -> None:
    texts = tables(hub, 2)
    source = SourceConfig(path=NAME)
    parts = split_source(source)
    second = hub.folder(NAME) / "1.parquet"
    second.write_bytes(second.read_bytes()[:500])
    assert [d.text for d in read_documents(parts[0], source, True)] == texts[:20]
    (document,) = read_documents(parts[1], source, strict=False)
    assert document.fatal and "owner/set file 2 of 2: reading breaks off at row 0 (" in document.error
    second.unlink()
    (document,) = read_documents(parts[1], source, strict=False)
    assert "`owner/set` has 1 files now, and had 2 when its reading began; give a revision" in document.error


# --- the recipes that ship --------------------------------------------------------------------------------------------

TALK = [{"from": "human", "value": "q", "weight": None}, {"from": "gpt", "value": "a", "weight": None}]
# A row of each set as it was published, with its columns.
PUBLISHED = {
    "HuggingFaceFW/fineweb-edu": {
        "text": "an essay", "id": "<urn:uuid:1>", "dump": "CC-MAIN-2013-20", "url": "http://a", "file_path": "s3://a",
        "language": "en", "language_score": 0.9, "token_count": 2, "score": 3.6, "int_score": 4,
    },
    "mlfoundations/dclm-baseline-1.0-parquet": {"text": "a page", "url": "http://a", "language": {"en": 0.9}},
    "HuggingFaceTB/smollm-corpus": {
        "prompt": "Write a text", "text": "a text", "token_length": 2, "audience": "general", "format": "blogpost",
    },
    "teknium/OpenHermes-2.5": {"conversations": TALK, "source": "airoboros2.2", "system_prompt": None},
    "cerebras/SlimPajama-627B": {"text": "a page", "meta": {"redpajama_set_name": "RedPajamaCommonCrawl"}},
}  # fmt: skip


@pytest.mark.parametrize("name", ["lrc-1.5b", "lrc-1.5b-mix-1.0", "lrc-1.7b", "lrc-2.7b-b", "lrc-4b"])
def test_shipped_recipes_read_the_sets_as_they_were_published(hub: FakeHub, name: str) -> None:
    data = load_recipe(name).data
    for source in data.sources:
        rows = [PUBLISHED[source.path]] * 3
        if source.path.startswith("HuggingFaceFW"):
            rows += [{**rows[0], "int_score": 3, "score": 3.2}]
        if source.path.startswith("cerebras"):
            packed = pa.compress("\n".join(map(json.dumps, rows)).encode(), codec="zstd", asbytes=True)
            (hub.folder(source.path) / "a.jsonl.zst").write_bytes(packed)
        else:
            pq.write_table(pa.Table.from_pylist(rows), hub.folder(source.path) / "a.parquet")
        documents = read(source)
        assert sum(d.text is not None or d.messages is not None for d in documents) == len(rows) - bool(source.filter)
        if source.chat_column:
            assert [(m["role"], m["content"]) for m in documents[0].messages] == [("user", "q"), ("assistant", "a")]
    check_sources(data)
