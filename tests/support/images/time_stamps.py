"""A time-stamp authority (RFC 3161) that says whatever time a test asks for."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.http_server import HttpServer

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    from cryptography import x509

_SHA256, _ECDSA_SHA256 = "2.16.840.1.101.3.4.2.1", "1.2.840.10045.4.3.2"
_SIGNED_DATA, _TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE, _DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE = "1.2.840.113549.1.9.16.2.47"
_SEQUENCE, _SET, _INTEGER, _OCTETS, _OID, _TIME = 0x30, 0x31, 0x02, 0x04, 0x06, 0x18
_CONTEXT_0 = 0xA0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeStampAuthority:
    """Key and certificate (leaf first, then the chain) that sign time stamps."""

    key: ec.EllipticCurvePrivateKey
    chain: list[x509.Certificate]

    def answer(self, query: bytes, at: dt.datetime) -> bytes:
        """Return the response to a time-stamp query, as if the time were `at`."""
        _, imprint, *rest = _elements(_elements(query)[0][1])
        nonce = [_der(tag, value) for tag, value in rest if tag == _INTEGER]
        info = _der(
            _SEQUENCE,
            _integer(1),
            _oid("1.2.3.4.1"),
            _der(*imprint),
            _integer(int(at.timestamp())),
            _der(_TIME, at.strftime("%Y%m%d%H%M%SZ").encode()),
            *nonce,
        )
        attributes = self._attributes(info)
        signature = self.key.sign(_der(_SET, attributes), ec.ECDSA(hashes.SHA256()))
        leaf = self.chain[0]
        signer = _der(
            _SEQUENCE,
            _integer(1),
            _der(_SEQUENCE, leaf.issuer.public_bytes(), _integer(leaf.serial_number)),
            _algorithm(_SHA256),
            _der(_CONTEXT_0, attributes),
            _algorithm(_ECDSA_SHA256),
            _der(_OCTETS, signature),
        )
        der = serialization.Encoding.DER
        signed = _der(
            _SEQUENCE,
            _integer(3),
            _der(_SET, _algorithm(_SHA256)),
            _der(_SEQUENCE, _oid(_TST_INFO), _der(_CONTEXT_0, _der(_OCTETS, info))),
            _der(_CONTEXT_0, *(certificate.public_bytes(der) for certificate in self.chain)),
            _der(_SET, signer),
        )
        token = _der(_SEQUENCE, _oid(_SIGNED_DATA), _der(_CONTEXT_0, signed))
        return _der(_SEQUENCE, _der(_SEQUENCE, _integer(0)), token)

    def _attributes(self, info: bytes) -> bytes:
        def attribute(name: str, value: bytes) -> bytes:
            return _der(_SEQUENCE, _oid(name), _der(_SET, value))

        digest = hashes.Hash(hashes.SHA256())
        digest.update(info)
        certificate = _der(_OCTETS, self.chain[0].fingerprint(hashes.SHA256()))
        parts = [
            attribute(_CONTENT_TYPE, _oid(_TST_INFO)),
            attribute(_DIGEST, _der(_OCTETS, digest.finalize())),
            attribute(
                _SIGNING_CERTIFICATE,
                _der(_SEQUENCE, _der(_SEQUENCE, _der(_SEQUENCE, certificate))),
            ),
        ]
        return b"".join(sorted(parts))  # as DER orders a set

    @contextmanager
    def serve(self, at: dt.datetime) -> Iterator[str]:
        """Answer queries on a port of this machine as if the time were `at`; yields the address."""
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = answer(self.rfile.read(int(self.headers["Content-Length"])), at)
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        with HttpServer(Handler) as server:
            yield server.url


# DER (ITU-T X.690) --------------------------------------------------------------------------------


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = b""
    for number in (40 * first + second, *rest):
        digits = bytes([number & 0x7F])
        while number := number >> 7:
            digits = bytes([0x80 | number & 0x7F]) + digits
        body += digits
    return _der(_OID, body)


def _algorithm(dotted: str) -> bytes:
    return _der(_SEQUENCE, _oid(dotted))


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tags and values of the elements that stand in a row."""
    found, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        found.append((tag, data[at : at + length]))
        at += length
    return found
