"""What is to be made of a source: its parts, and how their documents become ids."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import xxhash
from transformers import PreTrainedTokenizerBase

from ...errors import InputError
from ..config import DataConfig, SourceConfig
from ..files import find_files
from ..readers.documents import Part
from ..readers.hub import HubInfo, hub_info
from ..readers.parts import split_source
from ..tokenise import Tokeniser
from ..tokenizer import fingerprint, template_fingerprint
from .inputs import part_key
from .records import FORMAT, MANIFEST_FILE, Manifest, ShardRecord, read_manifest

# What of a source does not decide its ids: its part of the mix, and `revision`, for which the commit stands.
_OF_THE_MIX = ("weight", "tokens", "repeat", "revision")


@dataclass(frozen=True)
class SourceJob:
    """One source as it is tokenised; picklable.

    key: `data.sources.0`. folder: Where its shards go. strict: Whether a bad row ends the work. limit: Tokens after
    which a part of a Hub dataset is left; None for no limit. empty: The manifest, without shards.
    """

    key: str
    source: SourceConfig
    folder: Path
    parts: tuple[Part, ...]
    tokeniser: Tokeniser
    strict: bool
    limit: int | None
    empty: Manifest

    @property
    def size(self) -> int:
        """Bytes of its files; 0 on the Hub."""
        return sum(part.size for part in self.parts)

    @property
    def masks(self) -> bool:
        """Whether tokens are left out of the LM loss."""
        return self.source.loss_on == "assistant"

    def name(self, index: int) -> str:
        """Of the shard that a part becomes."""
        return f"{index:05d}"

    def part_key(self, index: int) -> str:
        """What a shard's record must say to be that of this part."""
        return part_key(self.parts[index], self.limit)

    def manifest(self, records: list[ShardRecord]) -> Manifest:
        """The manifest of these shards."""
        return replace(self.empty, shards=tuple(records))


def make_job(
    key: str,
    source: SourceConfig,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    needed: int | None,
) -> SourceJob:
    """The job of a source, of which nothing is read yet but the sizes of its files.

    Args:
        needed: Tokens that are wanted of a Hub dataset; None for all. Files are always tokenised whole.

    Raises:
        InputError: The source is not there, or the tokenizer does not suit it.
    """
    parts = tuple(split_source(source))
    local = find_files(source.path) is not None
    info = HubInfo(None, None) if local else hub_info(source)
    limit = None if local or needed is None else -(-needed // max(1, len(parts)))
    fields = {name: value for name, value in asdict(source).items() if name not in _OF_THE_MIX}
    if local:
        fields["path"] = os.path.abspath(os.path.expanduser(source.path))
    manifest = Manifest(
        token_bytes=2 if vocab_size < 2**16 else 4,
        vocab_size=vocab_size,
        tokenizer=fingerprint(tokenizer),
        template=template_fingerprint(tokenizer) if source.chat_column else None,
        source=fields,
        shards=(),
        revision=info.revision,
        licence=info.licence,
    )
    decides = [FORMAT, manifest.vocab_size, manifest.tokenizer, manifest.template, fields, info.revision, limit]
    digest = xxhash.xxh3_64_hexdigest(repr(decides).encode("utf-8", "surrogateescape"))
    folder = shards_root(config) / f"{_readable(source.path)}-{digest}"
    tokeniser = Tokeniser(tokenizer, source, vocab_size)
    return SourceJob(key, source, folder, parts, tokeniser, config.on_error == "raise", limit, manifest)


def check_tokenizer_of_shards(job: SourceJob) -> None:
    """Refuse a folder that was asked for by name and holds the source as another tokenizer made it.

    Raises:
        InputError: It says what differs.
    """
    if (job.folder / MANIFEST_FILE).exists():
        return
    for path in sorted(job.folder.parent.glob(f"*/{MANIFEST_FILE}")):
        found = read_manifest(path.parent)
        if found.source != job.empty.source or found.revision != job.empty.revision:
            continue
        for what, theirs, ours in (
            ("tokenizer", found.tokenizer, job.empty.tokenizer),
            ("chat template", found.template, job.empty.template),
        ):
            if theirs != ours:
                raise InputError(
                    f"data.shards: {path.parent} holds `{job.source.path}` with the {what} {theirs}, and the teacher's "
                    f"is {ours}; expected the same one; set data.shards to another folder for this teacher, or remove "
                    "that one"
                )


def shards_root(config: DataConfig) -> Path:
    """The folder that holds the shards of all sources, absolute."""
    if config.shards is not None:
        chosen = config.shards
    elif "LRC_CACHE" in os.environ:
        chosen = os.environ["LRC_CACHE"]
    else:
        chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lowrank-clone", "shards")
    return Path(os.path.abspath(os.path.expanduser(chosen)))


def _readable(path: str) -> str:
    """A part of a folder's name that tells which source it is."""
    words = re.findall(r"[A-Za-z0-9._]+", path if find_files(path) is None else os.path.basename(path.rstrip("/")))
    return "-".join(words).strip(".")[-40:].strip(".-") or "text"
