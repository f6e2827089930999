"""What the manifest and the segments say, and whether they say the same.

A segment's hash stands in the manifest, and in the footer of the segment after it: where two of the three
agree, the third was altered. The manifest can be made again from the footers, so a lost line of it hides
no segment here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.checks.findings import Finding, Run, in_words
from ledger.checks.folder import open_file
from ledger.errors import DamagedLedger
from ledger.lines import read_line, refuse_newer
from ledger.manifest import MANIFEST, Batch, batch_of

if TYPE_CHECKING:
    import pyarrow as pa

_REMAKE = f"move {MANIFEST} away and run bughive-costs seal: it is made again from the segments' footers"
_RESTORE = "put the segment back from a backup"
_CHUNK_BYTES = 1 << 20
_FOOTED = (  # what a footer and the manifest both say
    *("batch", "ledger_id", "rows", "previous_sha256", "covers", "first_at", "last_at", "sealed_at"),
    "schema_version",
)


class Listed(NamedTuple):
    """What the manifest's lines say."""

    batches: dict[int, Batch]
    broken_lines: list[int]  # numbers of lines that cannot be believed
    torn: bool  # the last line lacks its end: its sealer died, or is at work
    findings: list[Finding]


class Link(NamedTuple):
    """A segment in its place in the chain."""

    batch: Batch  # as the manifest says, or, where that has lost it, the footer
    sha256: str  # of the file as it is; where it is missing, as it should be
    is_listed: bool
    is_sound: bool  # whether its rows can be believed
    runs: Sequence[Run]  # what it holds of each journal


class Chain(NamedTuple):
    """All segments that follow each other from the first on, and what is wrong with them."""

    links: list[Link]
    findings: list[Finding]
    unlisted: int  # segments at its end that the manifest does not name yet

    @property
    def sound_files(self) -> list[str]:
        """Segments whose rows can be believed, relative to the ledger."""
        return [link.batch.file for link in self.links if link.is_sound]

    def covered(self) -> dict[str, int]:
        """Per journal the number of the last event in a segment, damaged or not."""
        return {run.journal_id: run.last_seq for link in self.links for run in link.runs}

    def lost(self) -> list[Run]:
        """What the segments that cannot be believed hold."""
        return [run for link in self.links if not link.is_sound for run in link.runs]


def read_lines(root: Path) -> Listed:
    """The manifest's lines, each judged by itself.

    Raises LedgerError for one that a newer version of this program has written.
    """
    try:
        with open_file(root / MANIFEST) as file:
            *lines, rest = file.read().split(b"\n")
    except FileNotFoundError:
        return Listed({}, [], False, [])
    except OSError as error:
        what = f"it cannot be read: {error.strerror}"
        return Listed({}, [], False, [Finding("unreadable", MANIFEST, what, "give its owner's rights back")])
    batches: dict[int, Batch] = {}
    broken, findings = [], []
    for number, line in enumerate(lines, start=1):
        batch = _batch(root, line)
        if batch is None:
            broken.append(number)
        elif batches and batch.batch <= max(batches):
            what = f"line {number} names batch {batch.batch}, which does not follow the line before it"
            findings.append(Finding("manifest-line", MANIFEST, what, _REMAKE, batch.batch))
        else:
            batches[batch.batch] = batch
    if read_line(rest[:-1]) is not None:  # a crash tears a line, it does not write on behind one
        broken.append(len(lines) + 1)
    return Listed(batches, broken, bool(rest), findings)


def _batch(root: Path, line: bytes) -> Batch | None:
    """A line's batch; None for a line that is altered, or says what no batch can be."""
    record = read_line(line)
    if record is None or not _is_batch(record):
        return None
    refuse_newer(root / MANIFEST, record["schema_version"])
    return batch_of(record)


def _is_batch(record: Mapping[str, Any]) -> bool:
    covers, previous, file = (record.get(name) for name in ("covers", "previous_sha256", "file"))
    return (
        all(_is_count(record.get(name)) for name in ("batch", "rows", "size_bytes", "schema_version"))
        and all(isinstance(record.get(name), str) for name in ("sha256", "ledger_id", "sealed_at", "file"))
        and all(isinstance(record.get(name), str) for name in ("first_at", "last_at"))
        and (previous is None or isinstance(previous, str))
        and isinstance(covers, dict)
        and all(_is_count(seq) for seq in covers.values())
        and isinstance(file, str)
        and ".." not in file
        and file.startswith("events/date=")
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**62


def read_chain(root: Path, segments: Iterable[str], listed_now: Listed, indexed: tuple[int, str]) -> Chain:
    """Follow the chain over the segments that stand in the folder.

    `segments` were listed before the manifest was read: one that is not in it was not sealed since.
    `indexed` is the last batch that state.db knows of, and its hash.
    """
    return _Follower(root, segments, listed_now, indexed).follow()


class _Follower:
    def __init__(
        self, root: Path, segments: Iterable[str], listed_now: Listed, indexed: tuple[int, str]
    ) -> None:
        self._root = root
        self._listed = listed_now
        self._indexed = indexed
        self._by_number: dict[int, list[str]] = {}
        for file in sorted(segments):
            self._by_number.setdefault(_number_of(file), []).append(file)
        self._findings = list(listed_now.findings)
        self._covered: dict[str, int] = {}
        self._links: list[Link] = []
        self._footers: dict[str, Batch | None] = {}

    def follow(self) -> Chain:
        last_listed = max(self._listed.batches, default=0)
        is_whole = True
        for number in range(1, min(last_listed, self._most()) + 1):
            batch = self._listed.batches.get(number)
            if batch is None:
                is_whole = self._follow_unlisted(number) and is_whole
            elif is_whole:
                self._follow_listed(batch)
            else:  # what was lost before it is not known, so nothing can be told of what it holds
                self._links.append(Link(batch, batch.sha256, True, False, self._runs(batch)))
        unlisted = 0
        while self._follow_unlisted(len(self._links) + 1):
            unlisted += 1
        self._judge_manifest(last_listed, unlisted)
        self._judge_index()
        used = {link.batch.file for link in self._links}
        for files in self._by_number.values():
            self._findings += [self._foreign(file) for file in files if file not in used]
        return Chain(self._links, self._findings, unlisted)

    def _most(self) -> int:
        """No more batches than there can be: a forged line must not make us count to its number."""
        return len(self._listed.batches) + len(self._listed.broken_lines) + len(self._by_number)

    def _follow_listed(self, batch: Batch) -> None:
        previous = self._links[-1] if self._links else None
        footer = self._footer(batch.file)
        runs = self._runs(footer if footer and footer.sha256 == batch.sha256 else batch)
        told = len(self._findings)
        sha256 = self._judge_file(batch, runs)
        if sha256 is not None and len(self._findings) == told:
            self._judge_previous(batch, previous)
            self._findings += rows_against(self._root, batch, runs)
        is_sound = len(self._findings) == told
        self._links.append(Link(batch, sha256 or batch.sha256, True, is_sound, runs))

    def _follow_unlisted(self, number: int) -> bool:
        """Whether a segment that the manifest does not name is next in the chain."""
        previous = self._links[-1] if self._links else None
        if (previous.batch.batch if previous else 0) != number - 1:
            return False
        for file in self._by_number.get(number, []):
            footer = self._footer(file)
            if footer is None or footer.batch != number or (previous and not _follows(footer, previous)):
                continue
            runs = self._runs(footer)
            wrong = list(rows_against(self._root, footer, runs))
            self._findings += wrong
            self._links.append(Link(footer, footer.sha256, False, not wrong, runs))
            return True
        return False

    def _runs(self, batch: Batch) -> list[Run]:
        runs = [
            Run(journal_id, self._covered.get(journal_id, 0) + 1, last_seq)
            for journal_id, last_seq in batch.covers.items()
        ]
        self._covered.update(batch.covers)
        return runs

    def _judge_file(self, batch: Batch, runs: Sequence[Run]) -> str | None:
        """The hash of a listed segment's file; None where there is none."""
        footer = self._footer(batch.file)
        try:
            size_bytes, sha256 = _hash(self._root / batch.file)
        except FileNotFoundError:
            what = f"it is missing, with {in_words(runs)}"
            self._add("missing-segment", batch, what, _RESTORE, runs)
            return None
        except OSError as error:
            self._add("unreadable", batch, f"it cannot be read: {error.strerror}", _RESTORE, runs)
            return None
        if (size_bytes, sha256) == (batch.size_bytes, batch.sha256):
            self._judge_footer(batch, footer)
        elif footer is not None and self._is_vouched_for(batch, sha256):
            what = (
                f"its line says {batch.sha256[:12]}…, {batch.size_bytes} bytes, and the chain the file's own"
            )
            finding = Finding("manifest-differs", MANIFEST, what, _REMAKE, batch.batch, runs)
            self._findings.append(finding)
        else:
            its_place = footer is not None and footer.batch == batch.batch
            says = "" if footer is None or its_place else f"; its footer says it is batch {footer.batch}"
            what = f"its {size_bytes} bytes are not those that were sealed ({in_words(runs)}){says}"
            self._add("altered-segment", batch, what, _RESTORE, runs)
        return sha256

    def _judge_footer(self, batch: Batch, footer: Batch | None) -> None:
        if footer is None:
            self._add("altered-segment", batch, "it is no segment: it has no footer of ours", _RESTORE, ())
            return
        differing = [name for name in _FOOTED if getattr(batch, name) != getattr(footer, name)]
        if differing:
            what = f"its line and the segment's footer differ in {', '.join(differing)}"
            self._findings.append(Finding("manifest-differs", MANIFEST, what, _REMAKE, batch.batch))

    def _is_vouched_for(self, batch: Batch, sha256: str) -> bool:
        """Whether the segment after it, or state.db, knows this hash."""
        if self._indexed == (batch.batch, sha256):
            return True
        after = self._listed.batches.get(batch.batch + 1)
        footer = self._footer(after.file) if after else None
        return footer is not None and footer.previous_sha256 == sha256

    def _judge_previous(self, batch: Batch, previous: Link | None) -> None:
        expected = previous.batch.sha256 if previous else None
        if batch.previous_sha256 != expected and (previous is None or previous.is_sound):
            what = f"it does not follow batch {batch.batch - 1}: the chain is broken here"
            self._add("chain", batch, what, "put the segments and the manifest back from one backup", ())

    def _judge_manifest(self, last_listed: int, unlisted: int) -> None:
        """Lines that are altered or gone; one that is not there yet is a sealer's at work."""
        missing = [link.batch for link in self._links if not link.is_listed]
        if self._listed.broken_lines:
            where = ", ".join(f"line {number}" for number in self._listed.broken_lines[:3])
            batch = missing[0].batch if missing else None
            what = f"altered: {where} ({len(self._listed.broken_lines)} in all)"
            self._findings.append(Finding("manifest-line", MANIFEST, what, _REMAKE, batch))
            return
        inside = [batch for batch in missing if batch.batch <= last_listed]
        if inside:
            what = f"the line of batch {inside[0].batch} is gone ({len(inside)} in all)"
            self._findings.append(Finding("manifest-line", MANIFEST, what, _REMAKE, inside[0].batch))
        elif unlisted > 1 or (unlisted and self._indexed[0] > last_listed):
            what = f"it has lost its end: it lists {last_listed} segments of {len(self._links)}"
            remedy = "bughive-costs seal lists them again"
            self._findings.append(Finding("manifest-short", MANIFEST, what, remedy, last_listed + 1))
        elif last_listed > len(self._links):
            what = f"the line of batch {len(self._links) + 1} is gone, and its segment"
            self._findings.append(Finding("missing-segment", MANIFEST, what, _RESTORE, len(self._links) + 1))

    def _judge_index(self) -> None:
        """state.db is told of a batch after it was listed: what it knows was there."""
        number, sha256 = self._indexed
        if number > len(self._links):
            what = f"state.db knows of {number} segments, and the chain ends after {len(self._links)}"
            remedy = "put the missing segments and their lines back from a backup"
            self._findings.append(Finding("missing-segment", MANIFEST, what, remedy, len(self._links) + 1))
        elif number and sha256 and self._links[number - 1].is_sound:
            link = self._links[number - 1]
            if link.sha256 != sha256:
                what = "it is not the one that state.db was told of: the chain was written anew"
                self._add("chain", link.batch, what, "put the ledger back from a backup", link.runs)

    def _footer(self, file: str) -> Batch | None:
        if file not in self._footers:
            self._footers[file] = read_footer(self._root, file)
        return self._footers[file]

    def _foreign(self, file: str) -> Finding:
        footer = self._footer(file)
        is_copy = footer is not None and footer.batch in self._listed.batches
        what = f"a copy of batch {footer.batch}" if footer and is_copy else "no segment of this chain"
        remedy = "move it away: plain Parquet readers would count it"
        return Finding("foreign-file", file, what, remedy, _number_of(file))

    def _add(self, kind: str, batch: Batch, what: str, remedy: str, runs: Sequence[Run]) -> None:
        self._findings.append(Finding(kind, batch.file, what, remedy, batch.batch, runs))


def _number_of(file: str) -> int:
    return int(file.removesuffix(".parquet").rpartition("-")[2])


def _follows(footer: Batch, previous: Link) -> bool:
    return footer.previous_sha256 == previous.sha256 and footer.ledger_id == previous.batch.ledger_id


def _hash(path: Path) -> tuple[int, str]:
    """A file's size in bytes, and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open_file(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def read_footer(root: Path, file: str) -> Batch | None:
    """What a segment's footer says; None where it is no segment of ours, or damaged beyond that."""
    from ledger.segments import batch_of_segment

    if (root / file).is_symlink():
        return None
    try:
        batch = batch_of_segment(root, root / file)
        return batch if _is_batch(batch._asdict()) else None
    except (OSError, ValueError, TypeError, KeyError, DamagedLedger):  # pyarrow's errors are among them
        return None


def rows_against(root: Path, batch: Batch, runs: Sequence[Run]) -> Iterator[Finding]:
    """How the rows of a segment differ from what it says it holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(
            root / batch.file, columns=["journal_id", "seq", "occurred_at"], partitioning=None
        )
        wrong = list(_wrong_rows(table, batch, runs))
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        wrong = [f"its rows cannot be read: {' '.join(str(error).split())[:120]}"]
    for what in wrong:
        yield Finding("segment-rows", batch.file, what, _RESTORE, batch.batch, runs)


def _wrong_rows(table: pa.Table, batch: Batch, runs: Sequence[Run]) -> Iterator[str]:
    if table.num_rows != batch.rows:
        yield f"it has {table.num_rows} rows, and says {batch.rows}"
    grouped = table.group_by("journal_id").aggregate(
        [("seq", "min"), ("seq", "max"), ("seq", "count"), ("seq", "count_distinct")]
    )
    found = {
        row["journal_id"]: (row["seq_min"], row["seq_max"], row["seq_count"], row["seq_count_distinct"])
        for row in grouped.to_pylist()
    }
    expected = {
        run.journal_id: (run.first_seq, run.last_seq, *[run.last_seq - run.first_seq + 1] * 2) for run in runs
    }
    for journal_id in sorted(found.keys() | expected.keys(), key=str):
        if found.get(journal_id) != expected.get(journal_id):
            yield _difference(str(journal_id), found.get(journal_id), expected.get(journal_id))
            break
    yield from _wrong_date(table, batch)


def _difference(journal_id: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> str:
    holds = f"{found[2]} rows from {found[0]} to {found[1]}" if found else "no rows"
    should = f"{expected[0]} to {expected[1]}, each once" if expected else "none"
    return f"of journal {journal_id} it has {holds}, where those should be {should}"


def _wrong_date(table: pa.Table, batch: Batch) -> Iterator[str]:
    import pyarrow.compute as pc

    moments = pc.min_max(table.column("occurred_at")).as_py()
    date = batch.file.split("/")[1].removeprefix("date=")
    days = {str(moment)[:10] for moment in moments.values()}
    if days - {date}:
        yield f"it has events of {min(days - {date})} in the folder of {date}"
