"""Sources → mixed, tokenised, packed blocks. Axis name: `tokens` = `sequence_length`, the fixed length of a block.

1. `_documents`: every source becomes an Arrow table of documents; a bad row is kept as data (`error`), so that
   counts survive caching and worker processes.
2. `_tokenise`: document → `[bos] ids eos` (bos only where the tokenizer itself adds it).
3. `_held_out`: whole documents go to validation, so no document is on both sides.
4. `_pack`: the documents of one source and one side are joined and cut into blocks; the remainder is dropped.
5. `_mix`: blocks of all sources are interleaved. Blocks are equally long, so a share of blocks is a share of tokens.

A document is a row of a table, a line of JSON, or, for plain text, a file. A text file longer than 64 KiB is split at
blank lines into documents of about that size, so that one huge file can be held out from and is never whole in memory.
"""

import glob
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_dataset, load_dataset_builder
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from .errors import InputError

_EXTENSIONS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_CHUNK = 64 * 1024  # characters of a text file per document
_PROBE = 8  # rows of each file that are read before any long work
_BATCH = 64  # documents per tokenizer call; bounds memory when documents are long
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException)
# `datasets` hashes importable functions by name only: raise this when documents, ids or blocks come out differently.
_CACHE_VERSION = 1
_DOCUMENT = Features({"text": Value("string"), "error": Value("string"), "fatal": Value("bool")})
_TOKENISED = Features({"input_ids": List(Value("int32")), "error": Value("string")})
_STRICT = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
_Side = Literal["train", "validation"]


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class SourceConfig:
    """One source of documents."""

    path: str
    """File (.txt, .jsonl, .json of one object per line, these .gz, .parquet), folder or glob of these, or Hub name."""
    name: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    chat_column: str | None = None
    """Column with a list of {role, content} messages, rendered by the chat template; replaces text_column."""
    weight: float = 1.0
    """Relative number of tokens of this source in the mix; no token is repeated to reach it."""
    max_documents: int | None = None
    """Use only the first so many documents."""

    @property
    def column(self) -> str:
        return self.chat_column or self.text_column


def _as_sources(value: Any) -> Any:
    """`corpus.txt`, or a list of such, is short for sources that have only a path."""
    if isinstance(value, str | dict | SourceConfig):
        value = [value]
    return [{"path": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


_Sources = Annotated[list[SourceConfig], pydantic.BeforeValidator(_as_sources)]


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """What to train and validate on."""

    sources: _Sources
    """Where the training documents come from."""
    sequence_length: int = 2048
    """Tokens per block."""
    validation: float | _Sources = 0.01
    """Fraction of each source's documents to hold out, or sources of their own."""
    max_validation_blocks: int | None = 512
    """At most so many validation blocks; what is held out beyond them is not used at all."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a malformed row: stop, or leave it out and count it."""
    seed: int = 0
    """Decides which documents are held out and the order of the blocks."""
    num_proc: int | None = None
    """Worker processes for reading and tokenising."""


@dataclass(frozen=True)
class SourceReport:
    """One source on one side; `tokens == (blocks + unused_blocks) * sequence_length + dropped_tokens`."""

    path: str
    part: _Side
    documents: int
    tokens: int
    blocks: int
    unused_blocks: int  # complete, but left out by the weights of the mix or by max_validation_blocks
    dropped_tokens: int  # the remainder that fills no block
    skipped: int  # malformed rows; of a source that serves both sides, counted under train
    blank: int  # rows without text; counted likewise
    first_skipped: str | None


@dataclass(frozen=True)
class DataReport:
    """Counts per source and side: training sources first, in the order of the configuration."""

    sources: tuple[SourceReport, ...]
    sequence_length: int

    def lines(self) -> list[str]:
        """One line per source and side, and one more where rows were skipped."""
        lines = []
        for s in self.sources:
            share = s.blocks / sum(other.blocks for other in self.sources if other.part == s.part)
            lines.append(
                f"{s.part} {s.path}: {s.documents:,} documents, {s.tokens:,} tokens, {s.blocks:,} blocks of "
                f"{self.sequence_length} ({share:.1%} of the mix), {s.unused_blocks:,} blocks unused, "
                f"{s.dropped_tokens:,} tokens dropped, {s.blank:,} blank rows"
            )
            if s.skipped:
                lines.append(f"{s.part} {s.path}: {s.skipped:,} malformed rows skipped, first: {s.first_skipped}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True)
class Blocks:
    """Packed data: columns `input_ids` and `labels`, both `[tokens]` int32 and equal; no padding, hence no mask."""

    train: Dataset
    validation: Dataset
    report: DataReport


# --- finding and reading: an origin is a local file or a Hub dataset; readers yield (place, value or ValueError) ------


def _files(path: str) -> list[str] | None:
    """Sorted absolute files of a local source; None if `path` can only be the name of a Hub dataset."""
    full = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(full):
        files = [str(p) for p in Path(full).rglob("[!._]*") if p.is_file()]
    elif os.path.exists(full):
        files = [full]
    elif glob.has_magic(path):
        files = [f for f in glob.glob(full, recursive=True) if os.path.isfile(f)]
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and not _extension(path):
        return None
    else:
        raise InputError(f"source {path}: no such file or folder; expected an existing path or a Hub dataset name")
    if not files:
        raise InputError(f"source {path}: holds no files; expected at least one of {', '.join(_EXTENSIONS)}")
    for file in files:
        if not _extension(file):
            known = ", ".join(_EXTENSIONS)
            raise InputError(f"source {path}: unknown extension of {file}; expected {known}; a glob can select files")
    return sorted(files)


def _extension(path: str) -> str:
    """The known extension of `path` without .gz, or an empty string."""
    return next((e.removesuffix(".gz") for e in _EXTENSIONS if path.lower().endswith(e)), "")


def _origins(source: SourceConfig) -> list[tuple[str, str]]:
    """`(path, version)` of each origin; the version makes the cache notice an edited file or a new Hub revision."""
    files = _files(source.path)
    if files is None:
        return [(source.path, _hub(source, load_dataset_builder).cache_dir)]
    return [(f, f"{os.stat(f).st_size} {os.stat(f).st_mtime_ns}") for f in files]


def _hub(source: SourceConfig, load: Callable[..., Any], **options: Any) -> Any:
    try:
        return load(source.path, source.name, **options)
    except Exception as error:  # whatever the remote side fails with, the source is what the user must mend
        raise InputError(
            f"source {source.path}: neither an existing file or folder nor a Hub dataset that loads with "
            f"name={source.name}, split={source.split} ({_reason(error)}); check the spelling and the network"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _open(path: str) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _read_text(path: str, _: SourceConfig) -> Iterator[tuple[str, Any]]:
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        rest = ""
        while piece := stream.read(_CHUNK):
            rest += piece
            if len(rest) > _CHUNK:
                cut = _border(rest, len(rest) // 2)  # in the second half: documents of about one size
                yield path, rest[:cut]
                rest = rest[cut:]
        if rest:
            yield path, rest


def _border(text: str, start: int) -> int:
    """End of the last paragraph that ends after `start`; else of the last line, word or character."""
    for mark in ("\n\n", "\n", " "):
        if (place := text.rfind(mark, start)) >= 0:
            return place + len(mark)
    return len(text)


def _read_json(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path} line {number}", _json_value(line, source.column)


def _json_value(line: bytes, column: str) -> Any:
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); expected JSON in UTF-8")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return ValueError(f"malformed JSON ({what}, column {error.colno}); expected one object per line")
    if not isinstance(record, dict):
        return ValueError(f"got a JSON {type(record).__name__}; expected one object per line")
    return record[column] if column in record else _absent(column, list(record))


def _absent(column: str, columns: list[str]) -> ValueError:
    return ValueError(f"no column `{column}`; expected one of the columns {', '.join(columns[:20])}")


def _read_parquet(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(path) as file:
        columns, row = file.schema_arrow.names, itertools.count()
        if source.column not in columns:
            yield path, _absent(source.column, columns)
            return
        for batch in file.iter_batches(batch_size=_BATCH, columns=[source.column]):
            yield from ((f"{path} row {next(row)}", value) for value in batch.column(0).to_pylist())


def _read_hub(path: str, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    # Streaming fetches the first documents of a large dataset and no more.
    rows = _hub(source, load_dataset, split=source.split, streaming=source.max_documents is not None)
    for number, row in enumerate(rows):
        column = source.column
        yield f"{path} row {number}", row[column] if column in row else _absent(column, list(row))


_READERS = {".txt": _read_text, ".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet, "": _read_hub}


def _documents(origins: Sequence[tuple[str, str]], source: SourceConfig, strict: bool) -> Iterator[dict[str, Any]]:
    """Rows of `_DOCUMENT`; an unreadable origin and, with `strict`, the first bad row is the last one.

    Errors are yielded, not raised: `datasets` wraps what a generator raises, and the cause is lost between processes.
    """
    good = 0
    for path, _ in origins:
        try:
            for place, value in _READERS[_extension(path)](path, source):
                row = _row(place, value, source.chat_column is not None)
                yield row
                good += row["error"] is None
                if good == source.max_documents or (strict and row["error"]):
                    return
        except (InputError, *_UNREADABLE) as error:
            message = f"{path}: cannot be read ({_reason(error)}); expected an intact file that you may read"
            yield {"text": None, "error": str(error) if isinstance(error, InputError) else message, "fatal": True}
            return


def _row(place: str, value: Any, chat: bool) -> dict[str, Any]:
    """A row of `_DOCUMENT`; messages are kept as JSON, because Arrow wants the same keys in all rows."""
    try:
        if isinstance(value, ValueError):
            raise value
        text = _messages(value) if chat else value
        if not isinstance(text, str):
            raise ValueError(f"the text is of type {type(text).__name__}; expected a string")
        text.encode()  # JSON may hold half a surrogate pair, which no tokenizer can take
    except ValueError as error:
        message = f"{place}: {error}; mend the row or the configuration, or set on_error: skip"
        return {"text": None, "error": message, "fatal": False}
    return {"text": text, "error": None, "fatal": False}


def _messages(value: Any) -> str:
    """JSON of the messages without null fields (tables fill absent keys with null)."""
    expected = "expected a list of {role, content} messages"
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"the chat is {str(value)[:60]!r}; {expected}")
    messages = [{k: v for k, v in m.items() if v is not None} for m in value]
    for m in messages:
        content = m.get("content", "" if "tool_calls" in m else None)
        if not isinstance(m.get("role"), str) or not isinstance(content, str):
            raise ValueError(f"a message has {sorted(m)}, and role and content are not both strings; {expected}")
    return json.dumps(messages, default=str)


# --- checks before any long work -------------------------------------------------------------------------------------


def check_sources(config: DataConfig) -> None:
    """Finds what can be found cheaply: values, paths, extensions, permissions and the first rows of each file.

    Raises:
        InputError: one line that names the source and says how to mend it.
    """
    _check_values(config)
    seen: dict[Any, str] = {}
    for source in [*config.sources, *_validation_sources(config)]:
        files = _files(source.path)
        if files and (source.name is not None or source.split != "train"):
            raise InputError(f"source {source.path}: name and split select from a Hub dataset; remove them for files")
        for key in map(os.path.realpath, files) if files else [(source.path, source.name, source.split)]:
            if key in seen:
                raise InputError(
                    f"source {source.path}: {key} is already part of source {seen[key]}; expected each file once, or "
                    "its documents are on both sides of the hold-out or twice in the mix; remove one of the two"
                )
            seen[key] = source.path
        for origin in _origins(source):
            _probe(source, origin, config.on_error == "raise")


def _probe(source: SourceConfig, origin: tuple[str, str], strict: bool) -> None:
    few = replace(source, max_documents=source.max_documents or _PROBE)  # so that a Hub dataset is streamed
    rows = list(itertools.islice(_documents([origin], few, strict), _PROBE))
    bad = [row for row in rows if row["error"]]
    if bad and (strict or bad[-1]["fatal"] or len(bad) == len(rows)):
        raise InputError(bad[-1]["error"])
    if len(rows) < _PROBE and not any((row["text"] or "").strip() for row in rows):
        raise InputError(f"source {source.path}: {origin[0]} holds no text; expected at least one document; remove it")


def _validation_sources(config: DataConfig) -> list[SourceConfig]:
    return config.validation if isinstance(config.validation, list) else []


def _check_values(config: DataConfig) -> None:
    held, length, none = config.validation, config.sequence_length, "expected at least 1, or null"
    checks = [
        (len(config.sources) > 0, "data.sources is empty; expected at least one file, folder, glob or Hub dataset"),
        (length >= 2, f"data.sequence_length is {length}; expected at least 2 tokens"),
        (held != [], "data.validation is an empty list; expected a fraction such as 0.01, or at least one source"),
        (isinstance(held, list) or 0 < held < 1, f"data.validation is {held}; expected a fraction between 0 and 1"),
    ]
    for key in ("max_validation_blocks", "num_proc"):
        value = getattr(config, key)
        checks.append((value is None or value >= 1, f"data.{key} is {value}; {none}"))
    for s in [*config.sources, *_validation_sources(config)]:
        positive = 0 < s.weight < float("inf")
        checks.append((positive, f"source {s.path}: weight is {s.weight}; expected a positive number"))
        some = s.max_documents is None or s.max_documents >= 1
        checks.append((some, f"source {s.path}: max_documents is {s.max_documents}; {none}"))
    for good, message in checks:
        if not good:
            raise InputError(message)


def _check_tokenizer(config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; expected one, to end documents; set tokenizer.eos_token")
    for source in [*config.sources, *_validation_sources(config)]:
        if source.chat_column and not tokenizer.chat_template:
            raise InputError(
                f"source {source.path}: chat_column is set but the tokenizer has no chat template; expected one; "
                "set tokenizer.chat_template, or use text_column"
            )
    _check_ids(np.array([tokenizer.eos_token_id]), tokenizer, vocab_size)


def _check_ids(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    worst = int(ids.max())
    if worst >= vocab_size:
        raise InputError(
            f"token {tokenizer.convert_ids_to_tokens(worst)!r} has id {worst}, beyond the model's embedding of "
            f"{vocab_size} rows; expected the model's own tokenizer"
        )


# --- tokenising, packing, mixing -------------------------------------------------------------------------------------


def _tokens(source: SourceConfig, config: DataConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Dataset:
    """Rows of `_TOKENISED`, one per document."""
    origins, strict = _origins(source), config.on_error == "raise"
    plain = replace(source, weight=1.0)  # another weight must not read and tokenise again
    # A limit counts over all origins, so it needs a single worker.
    workers = 1 if source.max_documents else min(config.num_proc or 1, len(origins))
    documents = Dataset.from_generator(
        _documents,
        features=_DOCUMENT,
        gen_kwargs={
            # `datasets` deals out a list, element by element, and hands over a tuple whole.
            "origins": origins if workers > 1 else tuple(origins),
            "source": plain,
            "strict": strict,
        },
        num_proc=workers if workers > 1 else None,
        fingerprint=Hasher.hash([_CACHE_VERSION, origins, plain, strict]),  # the same for any number of workers
    )
    return documents.map(
        _tokenise,
        batched=True,
        batch_size=_BATCH,
        with_indices=True,
        remove_columns=list(_DOCUMENT),
        features=_TOKENISED,
        fn_kwargs={"tokenizer": tokenizer, "source": plain, "strict": strict, "vocab_size": vocab_size},
        num_proc=config.num_proc,
    )


def _tokenise(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    source: SourceConfig,
    strict: bool,
    vocab_size: int,
) -> dict[str, list[Any]]:
    """`input_ids` is `[bos] ids eos`, and empty for a blank or bad row."""
    chat = source.chat_column is not None
    texts, errors = list(batch["text"]), list(batch["error"])
    for i, text in enumerate(texts):
        if chat and text:
            texts[i], errors[i] = _render(text, tokenizer, f"{source.path} document {indices[i]}")
        if errors[i] and (strict or batch["fatal"][i]):
            raise InputError(errors[i])
    rows = [np.empty(0, np.int32) for _ in texts]
    if filled := [i for i, text in enumerate(texts) if text and text.strip()]:
        bos = [] if chat else _bos(tokenizer)  # a chat template writes its own
        chosen = [texts[i] for i in filled]
        encoded = tokenizer(chosen, add_special_tokens=False, return_attention_mask=False)
        for i, ids in zip(filled, encoded["input_ids"], strict=True):
            ended = chat and texts[i].rstrip().endswith(tokenizer.eos_token)  # most templates end a turn with eos
            rows[i] = np.array([*bos, *ids] if ended else [*bos, *ids, tokenizer.eos_token_id], np.int32)
            _check_ids(rows[i], tokenizer, vocab_size)
    return {"input_ids": rows, "error": errors}


def _render(text: str, tokenizer: PreTrainedTokenizerBase, place: str) -> tuple[str | None, str | None]:
    """The chat as text, or the error if the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(json.loads(text), tokenize=False)), None
    except jinja2.TemplateError as error:
        return None, f"{place}: the chat template refuses it ({_reason(error)}); mend it, or set on_error: skip"


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[bos]` if the tokenizer itself puts it before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _lengths(tokens: Dataset) -> np.ndarray:
    """`[documents]` number of tokens of each document; 0 for a blank or bad row."""
    return pc.list_value_length(tokens.data.column("input_ids")).to_numpy()


def _held_out(filled: np.ndarray, fraction: float, seed: list[int], path: str) -> np.ndarray:
    """`[documents]` bool: which of the `filled` documents are held out, at least one."""
    candidates = np.flatnonzero(filled)
    if len(candidates) < 2:
        raise InputError(
            f"source {path}: {len(candidates)} document(s) with text, but a hold-out by document needs at least 2; "
            "give more documents, or set data.validation to sources of its own"
        )
    count = min(max(1, round(fraction * len(candidates))), len(candidates) - 1)
    mask = np.zeros(len(filled), bool)
    mask[np.random.default_rng(seed).choice(candidates, count, replace=False)] = True
    return mask


@dataclass(frozen=True)
class _Part:
    """One source on one side, before mixing."""

    source: SourceConfig
    side: _Side
    tokens: Dataset  # of both sides
    mask: np.ndarray  # [documents] bool: those of this side
    blocks: Dataset


def _pack(source: SourceConfig, side: _Side, tokens: Dataset, mask: np.ndarray, length: int) -> _Part:
    """Raises InputError if there is less than one block."""
    count = int(_lengths(tokens)[mask].sum())
    if count < length:
        fix = "raise data.validation, give" if side == "validation" else "give"
        raise InputError(
            f"source {source.path}: {count} tokens for {side}, but one block needs {length}; "
            f"{fix} more text, or lower data.sequence_length"
        )
    blocks = Dataset.from_generator(
        _cut,
        features=Features({"input_ids": List(Value("int32"), length=length)}),
        gen_kwargs={"tokens": tokens, "mask": mask, "length": length},
        fingerprint=Hasher.hash([_CACHE_VERSION, tokens._fingerprint, mask.tobytes(), length]),
    )
    return _Part(source, side, tokens, mask, blocks)


def _cut(tokens: Dataset, mask: np.ndarray, length: int) -> Iterator[dict[str, np.ndarray]]:
    """Blocks `[tokens]` of the documents that `mask` selects, in order; one sequential read, no remainder per batch."""
    rest, start = np.empty(0, np.int32), 0
    for table in tokens.with_format("arrow").iter(batch_size=_BATCH):
        chosen = table.column("input_ids").filter(pa.array(mask[start : start + len(table)]))
        start += len(table)
        stream = np.concatenate([rest, pc.list_flatten(chosen).to_numpy()])
        whole = len(stream) // length * length
        yield from ({"input_ids": block} for block in stream[:whole].reshape(-1, length))
        rest = stream[whole:]


def _mix(parts: list[_Part], seed: int, limit: int | None) -> tuple[Dataset, list[int]]:
    """Blocks of all parts and how many of each: shuffled within a part, and in every stretch in shares of the weights.

    The mix ends where the first part would have to repeat, or after about `limit` blocks.
    """
    rng = np.random.default_rng(seed)
    weights = np.array([p.source.weight for p in parts])
    shares = weights / weights.sum()
    sizes = np.array([len(p.blocks) for p in parts])
    total = min((sizes / shares).min(), np.inf if limit is None else limit)
    counts = np.maximum(1, np.round(shares * total)).astype(int)
    offsets = np.cumsum(sizes) - sizes
    chosen = [start + rng.permutation(size)[:n] for start, size, n in zip(offsets, sizes, counts, strict=True)]
    places = [(np.arange(n) + rng.random(n)) / n for n in counts]
    ids = concatenate_datasets([p.blocks for p in parts])
    # Both names map the same file, so labels cost no disk.
    joined = concatenate_datasets([ids, ids.rename_column("input_ids", "labels")], axis=1)
    return joined.select(np.concatenate(chosen)[np.argsort(np.concatenate(places))]), counts.tolist()


def _report(part: _Part, used: int, shared: bool) -> SourceReport:
    lengths, errors = _lengths(part.tokens), part.tokens.data.column("error").drop_null()
    tokens = int(lengths[part.mask].sum())
    elsewhere = shared and part.side == "validation"  # a bad row is on no side; it is counted once
    return SourceReport(
        path=part.source.path,
        part=part.side,
        documents=int(part.mask.sum()),
        tokens=tokens,
        blocks=used,
        unused_blocks=len(part.blocks) - used,
        dropped_tokens=tokens % part.blocks.features["input_ids"].length,
        skipped=0 if elsewhere else len(errors),
        blank=0 if elsewhere else int((lengths == 0).sum()) - len(errors),
        first_skipped=None if elsewhere or not len(errors) else errors[0].as_py(),
    )


def prepare(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, vocab_size: int
) -> Blocks:
    """Tokenised blocks for training and validation, the same for the same files, tokenizer and seed.

    Args:
        max_length: longest sequence the model takes (its max_position_embeddings); None if it has no limit.
        vocab_size: rows of the model's embedding.

    Raises:
        InputError: all that `check_sources` finds; a sequence_length beyond max_length; a tokenizer without eos or
            without the chat template that a source needs; an id beyond vocab_size; a malformed row, unless on_error
            is skip; less than one block of a source on a side.
    """
    length, held = config.sequence_length, config.validation
    if max_length is not None and length > max_length:
        raise InputError(f"data.sequence_length is {length}, but the model takes at most {max_length} tokens; lower it")
    check_sources(config)
    _check_tokenizer(config, tokenizer, vocab_size)
    train, validation = [], []
    for i, source in enumerate(config.sources):
        tokens = _tokens(source, config, tokenizer, vocab_size)
        mask = _lengths(tokens) > 0
        if not isinstance(held, list):
            held_out = _held_out(mask, held, [config.seed, i], source.path)
            validation.append(_pack(source, "validation", tokens, held_out, length))
            mask &= ~held_out
        train.append(_pack(source, "train", tokens, mask, length))
    for source in _validation_sources(config):
        tokens = _tokens(source, config, tokenizer, vocab_size)
        validation.append(_pack(source, "validation", tokens, _lengths(tokens) > 0, length))
    train_blocks, train_counts = _mix(train, config.seed, None)
    validation_blocks, validation_counts = _mix(validation, config.seed, config.max_validation_blocks)
    used = zip([*train, *validation], [*train_counts, *validation_counts], strict=True)
    reports = tuple(_report(part, count, not isinstance(held, list)) for part, count in used)
    return Blocks(train_blocks, validation_blocks, DataReport(reports, length))
