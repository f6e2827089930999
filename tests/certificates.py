"""Certificates of one's own for servers on this machine, made anew in each run."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certified(NamedTuple):
    """A server's identity, and the file that says whom a client may trust."""

    server: ssl.SSLContext
    trusted: Path


def certified(folder: Path, host: str) -> Certified:
    """A self-signed certificate for a host; skips the test where openssl is not installed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command to make a certificate with")
    key, certificate = folder / f"{host}.key", folder / f"{host}.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    about = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    made = [*kind, *about, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, "req", *made], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return Certified(server, certificate)
