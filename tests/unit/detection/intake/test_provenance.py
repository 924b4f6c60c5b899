"""`detection.intake.provenance` on files that carry every kind of claim about their origin."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detection.intake.provenance import ProvenanceRecord, read_provenance
from tests.support.images import bad_files
from tests.support.images.bad_files import box, encoded, picture

_TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_TRAINED = _TERMS + "trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    "{attribute}>{element}</rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)


def xmp(attribute: str = "", element: str = "") -> bytes:
    """An XMP packet with the property written one way or another."""
    return _XMP.format(attribute=attribute, element=element).encode()


_ATTRIBUTE = xmp(attribute=f' i:DigitalSourceType="{_TRAINED}"')


# ---------------------------------------------------------------- EXIF and IPTC


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_camera_is_read(kind: str) -> None:
    """Make, model, software and time come out of every format that carries EXIF."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Lumen", "L-7", "Darkroom 3"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:31 12:00:00"
    found = read_provenance(encoded(picture(), kind, exif=exif.tobytes())).exif
    assert (found.make, found.model, found.software) == ("Lumen", "L-7", "Darkroom 3")
    assert found.taken_at == "2026:01:31 12:00:00"


@pytest.mark.parametrize(
    "packet",
    [
        _ATTRIBUTE,
        xmp(element=f"<i:DigitalSourceType>{_TRAINED}</i:DigitalSourceType>"),
        xmp(element=f'<i:DigitalSourceType rdf:resource="{_TRAINED}"/>'),
        _ATTRIBUTE + b"\0",
    ],
)
def test_source_type_is_read_however_it_is_written(packet: bytes) -> None:
    """Attribute, text and resource are the same property."""
    found = read_provenance(encoded(picture(), "JPEG", xmp=packet))
    assert found.iptc_digital_source_type == _TRAINED
    assert found.iptc_asserts_ai


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "HEIF", "TIFF", "PNG"])
def test_source_type_is_read_from_every_container(kind: str) -> None:
    """XMP is found where each format keeps it."""
    options: dict[str, object] = {"xmp": _ATTRIBUTE}
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", _ATTRIBUTE.decode())
        options = {"pnginfo": info}
    elif kind == "TIFF":
        options = {"tiffinfo": {700: _ATTRIBUTE}}
    assert read_provenance(encoded(picture(), kind, **options)).iptc_digital_source_type == _TRAINED


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_film_behind_the_picture_hides_no_camera(kind: str) -> None:
    """What lies behind the last box changes nothing of what the file says."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    data = encoded(picture(), kind, exif=exif.tobytes())
    film = box(b"ftyp", b"isom\0\0\0\0isommp42") + box(b"moov", bytes(40))
    assert read_provenance(data + film).exif.make == "Maker"


def test_a_camera_source_type_asserts_no_ai() -> None:
    """A digital capture is reported as what it is."""
    packet = xmp(attribute=f' i:DigitalSourceType="{_TERMS}digitalCapture"')
    found = read_provenance(encoded(picture(), "JPEG", xmp=packet))
    assert found.iptc_digital_source_type == _TERMS + "digitalCapture"
    assert not found.iptc_asserts_ai


@pytest.mark.parametrize(
    "packet",
    [
        f"trainedAlgorithmicMedia {_TRAINED}".encode(),
        xmp(attribute=f' i:Note="{_TRAINED}"'),
        b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 99 + b'">]>' + _ATTRIBUTE,
        _ATTRIBUTE[: len(_ATTRIBUTE) // 2],
        b"",
    ],
)
def test_words_outside_the_property_say_nothing(packet: bytes) -> None:
    """The vocabulary's words elsewhere, entities and broken packets are no source type."""
    found = read_provenance(encoded(picture(), "JPEG", xmp=packet))
    assert found.iptc_digital_source_type is None


def test_words_behind_the_picture_say_nothing() -> None:
    """Appending provenance words to a photograph changes nothing that is read from it."""
    plain = encoded(picture(), "JPEG")
    assert read_provenance(plain + b"c2pa jumbf trainedAlgorithmicMedia") == read_provenance(plain)
    assert read_provenance(plain) == ProvenanceRecord()


# ---------------------------------------------------------------- hostile bytes


@pytest.mark.parametrize("name", bad_files.refused())
def test_bad_files_raise_nothing(name: str) -> None:
    """No bad input makes the reader raise, and what it says goes into JSON."""
    json.dumps(read_provenance(bad_files.refused()[name].data).as_dict())


@settings(max_examples=150, deadline=None)
@given(
    at=st.floats(0, 1),
    patch=st.binary(min_size=1, max_size=40),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_mutated_files_raise_nothing(at: float, patch: bytes, kind: str) -> None:
    """Bytes overwritten anywhere in a file that carries signals raise nothing."""
    exif = Image.Exif()
    exif[0x010F] = "Lumen"
    data = encoded(picture(), kind, exif=exif, xmp=_ATTRIBUTE)
    start = int(at * (len(data) - 1))
    json.dumps(read_provenance(data[:start] + patch + data[start + len(patch) :]).as_dict())
