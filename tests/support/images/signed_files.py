"""Pictures with a C2PA manifest, signed by certificates made for the run."""

from __future__ import annotations

import datetime as dt
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.images.bad_files import encoded, picture
from tests.support.images.time_stamps import TimeStampAuthority

if TYPE_CHECKING:
    from pathlib import Path

_PEM = serialization.Encoding.PEM
DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A root that issues certificates; nobody trusts it unless a test says so."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str = "root") -> Authority:
        """Make a root that is valid for twenty years around now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        root = _certificate(
            name, key, issuer=name, issuer_key=key, begin=now - 3650 * DAY, end=now + 3650 * DAY
        )
        return cls(key=key, certificate=root)

    def write(self, folder: Path) -> Path:
        """Write the root as PEM and return the path."""
        path = folder / f"{self.certificate.serial_number}.pem"
        path.write_bytes(self.certificate.public_bytes(_PEM))
        return path

    def signer(
        self, *, begin: dt.datetime | None = None, end: dt.datetime | None = None, ta_url: str = ""
    ) -> c2pa.C2paSignerInfo:
        """Issue a certificate fit for C2PA signing, valid now unless told otherwise."""
        key, leaf = self._issue("leaf", ExtendedKeyUsageOID.EMAIL_PROTECTION, begin, end)
        return c2pa.C2paSignerInfo(
            alg=c2pa.C2paSigningAlg.ES256,
            sign_cert=leaf.public_bytes(_PEM) + self.certificate.public_bytes(_PEM),
            private_key=key.private_bytes(
                _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            ta_url=ta_url.encode() or None,
        )

    def time_stamp_authority(self) -> TimeStampAuthority:
        """Issue a certificate fit for time stamps."""
        now = dt.datetime.now(dt.UTC)
        key, leaf = self._issue(
            "clock", ExtendedKeyUsageOID.TIME_STAMPING, now - 3000 * DAY, now + 3000 * DAY
        )
        return TimeStampAuthority(key=key, chain=[leaf, self.certificate])

    def _issue(
        self,
        subject: str,
        usage: x509.ObjectIdentifier,
        begin: dt.datetime | None,
        end: dt.datetime | None,
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        name = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        leaf = _certificate(
            subject,
            key,
            issuer=str(name),
            issuer_key=self.key,
            begin=begin or now - DAY,
            end=end or now + 30 * DAY,
            usage=usage,
        )
        return key, leaf


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    begin: dt.datetime,
    end: dt.datetime,
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    def name(common: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "unlatent tests"),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )

    ca = usage is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if usage is not None:
        # RFC 3161 wants the usage of a time-stamp authority to be critical and the only one.
        critical = usage == ExtendedKeyUsageOID.TIME_STAMPING
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=critical)
    return builder.sign(issuer_key, hashes.SHA256())


def signer() -> c2pa.C2paSignerInfo:
    """A leaf certificate fit for C2PA signing under a root that nobody trusts."""
    return Authority.make().signer()


def signed(
    signer_info: c2pa.C2paSignerInfo,
    source_type: str,
    kind: str = "JPEG",
    media: str = "image/jpeg",
    **options: object,
) -> bytes:
    """A picture with a manifest that says how it was made; `options` are its encoder's."""
    return sign(signer_info, encoded(picture(), kind, **options), created(source_type), media=media)


def created(source_type: str) -> dict[str, Any]:
    """The action that a manifest begins with."""
    return {"action": "c2pa.created", "digitalSourceType": source_type}


def sign(
    signer_info: c2pa.C2paSignerInfo,
    data: bytes,
    *actions: dict[str, Any],
    ingredients: tuple[tuple[str, bytes], ...] = (),
    media: str = "image/jpeg",
) -> bytes:
    """Sign a file with these actions and ingredients, each a relationship and its JPEG bytes."""
    manifest = {
        "claim_generator_info": [{"name": "Test Camera", "version": "1.0"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": list(actions)}}],
    }
    # Signing is the tool of a test: what it makes may be wrong on purpose.
    context = c2pa.Context.from_dict({"verify": {"verify_after_sign": False}})
    source, result = io.BytesIO(data), io.BytesIO()
    with (
        context,
        c2pa.Signer.from_info(signer_info) as signer,
        c2pa.Builder(json.dumps(manifest), context=context) as builder,
    ):
        for number, (relationship, ingredient) in enumerate(ingredients):
            told = {"title": f"{number}.jpg", "relationship": relationship}
            builder.add_ingredient(json.dumps(told), "image/jpeg", io.BytesIO(ingredient))
        builder.sign(signer, media, source, result)
    return result.getvalue()
