"""The price books a ledger has ever counted with, each kept in it under its hash.

    price_books/<hash>.json     written once, when a ledger is first opened with that book

An event names its book by hash; the book says where each price came from, and when it was looked up.
"""

from __future__ import annotations

import json
from pathlib import Path

from ledger.errors import DamagedLedger, LedgerError
from ledger.files import make_private_folder, read_private, replace_file
from ledger.prices import PriceBook, as_tables

FOLDER = "price_books"


def keep(ledger_path: Path, book: PriceBook) -> None:
    """Keep a book, if it is not kept already."""
    file = _file_of(ledger_path, book.hash)
    if not file.exists():
        make_private_folder(file.parent)
        replace_file(file, content_of(book))


def content_of(book: PriceBook) -> bytes:
    """A book as it is kept: a line per entry."""
    lines = ",\n".join(json.dumps(table) for table in as_tables(book.entries))
    return f"[\n{lines}\n]\n".encode()


def kept(ledger_path: Path, book_hash: str) -> PriceBook:
    """The book of that hash. Raises LedgerError where none is kept, DamagedLedger where it was altered."""
    file = _file_of(ledger_path, book_hash)
    if not file.exists():
        known = ", ".join(hashes(ledger_path)) or "none"
        raise LedgerError(f"no price book {book_hash} is kept in {ledger_path}; there are: {known}")
    try:
        book = PriceBook.of_tables(json.loads(read_private(file)), file.name)
    except Exception as error:
        raise DamagedLedger(f"{file} cannot be read: {error}") from error
    if book.hash != book_hash:
        raise DamagedLedger(f"{file} holds a book whose hash is {book.hash}: it was altered")
    return book


def hashes(ledger_path: Path) -> list[str]:
    """The hashes of all books that are kept."""
    return sorted(file.stem for file in (ledger_path / FOLDER).glob("*.json"))


def _file_of(ledger_path: Path, book_hash: str) -> Path:
    if not (book_hash.isascii() and book_hash.isalnum()):
        raise LedgerError(f"{book_hash!r} is no hash of a price book; see the column price_book of events")
    return ledger_path / FOLDER / f"{book_hash}.json"
