"""XMP properties in every block in which PNG files carry a packet, and the label of GB 45438."""

from __future__ import annotations

import json
import zlib

import pytest

from detection.intake.provenance import read_provenance
from tests.support.images.bad_files import encoded, picture, png, png_chunk

_TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_KEY = b"XML:com.adobe.xmp\0"
_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_LABEL = {"Label": "1", "ContentProducer": "001191110102MACQD9K64010000", "ProduceID": "p-1"}


def packet(inner: str, *, attribute: str = "") -> bytes:
    """An XMP packet that knows the namespaces of the properties that are read."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        ' xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:T="http://www.tc260.org.cn/ns/AIGC/1.0/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"{attribute}>{inner}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def raw_profile(name: str, block: bytes) -> bytes:
    """A profile as ImageMagick writes it: name, length, lines of 72 hexadecimal digits."""
    digits = block.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return f"\n{name}\n{len(block):8d}\n{lines}\n".encode()


IPTC = packet(f"<i:DigitalSourceType>{_TRAINED}</i:DigitalSourceType>")
PLACES = {
    "tEXt": png_chunk(b"tEXt", _KEY + IPTC),
    "zTXt": png_chunk(b"zTXt", _KEY + b"\0" + zlib.compress(IPTC)),
    "iTXt": png_chunk(b"iTXt", _KEY + b"\0\0\0\0" + IPTC),
    "iTXt, compressed": png_chunk(b"iTXt", _KEY + b"\1\0\0\0" + zlib.compress(IPTC)),
    "iTXt with a language": png_chunk(b"iTXt", _KEY + b"\0\0en\0XMP\0" + IPTC),
    "raw profile xmp": png_chunk(
        b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(raw_profile("xmp", IPTC))
    ),
    "raw profile xmp, tEXt": png_chunk(b"tEXt", b"Raw profile type xmp\0" + raw_profile("x", IPTC)),
    "raw profile app1": png_chunk(
        b"zTXt",
        b"Raw profile type APP1\0\0" + zlib.compress(raw_profile("app1", _SEGMENT + IPTC)),
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("behind", [False, True])
def test_a_packet_is_read_wherever_a_png_holds_it(place: str, *, behind: bool) -> None:
    """Every text chunk may hold the packet, plain or packed, before the pixels or behind them."""
    data = png(PLACES[place])
    if behind:
        end = png().index(b"IEND") - 4
        data = png()[:end] + PLACES[place] + png()[end:]
    found = read_provenance(data)
    assert found.iptc_digital_source_type == _TRAINED
    assert found.declared_where == ("XMP Iptc4xmpExt:DigitalSourceType",)


def test_a_webp_of_imagemagick_6_is_read() -> None:
    """That program ends the name of the chunk with a zero instead of a space."""
    data = encoded(picture(), "WEBP", xmp=IPTC)
    assert data.count(b"XMP ") == 1
    assert read_provenance(data.replace(b"XMP ", b"XMP\0")).iptc_digital_source_type == _TRAINED


@pytest.mark.parametrize("name", ["exif", "APP1"])
def test_exif_is_read_from_a_raw_profile(name: str) -> None:
    """ImageMagick keeps the EXIF of a photograph in such a profile too."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x010F] = "Lumen"
    chunk = f"Raw profile type {name}\0\0".encode() + zlib.compress(
        raw_profile(name, exif.tobytes())
    )
    assert read_provenance(png(png_chunk(b"zTXt", chunk))).exif.make == "Lumen"


def test_a_packet_that_unpacks_beyond_the_limit_is_left_out() -> None:
    """Texts unpack to no more than the limit on metadata."""
    packed = png_chunk(b"zTXt", _KEY + b"\0" + zlib.compress(IPTC + b" " * 2**20))
    assert read_provenance(png(packed), max_metadata_bytes=2**21).declares_ai
    assert not read_provenance(png(packed), max_metadata_bytes=2**19).declares_ai


def escaped(told: dict[str, str]) -> str:
    """JSON as it stands in XML."""
    return json.dumps(told).replace('"', "&quot;")


LABELS = {
    "JSON": packet(f"<T:AIGC>{escaped(_LABEL)}</T:AIGC>"),
    "JSON, attribute": packet("", attribute=f' T:AIGC="{escaped(_LABEL)}"'),
    "structure": packet(
        '<T:AIGC rdf:parseType="Resource"><T:Label>1</T:Label>'
        f"<T:ContentProducer>{_LABEL['ContentProducer']}</T:ContentProducer></T:AIGC>"
    ),
    "structure, attributes": packet(
        f'<T:AIGC T:Label="1" T:ContentProducer="{_LABEL["ContentProducer"]}"/>'
    ),
}


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_the_label_of_gb_45438_is_read(form: str, kind: str) -> None:
    """China's label declares AI, names its producer, and stands in XMP of every container."""
    if kind == "PNG":
        data = png(png_chunk(b"iTXt", _KEY + b"\0\0\0\0" + LABELS[form]))
    elif kind == "TIFF":
        data = encoded(picture(), "TIFF", tiffinfo={700: LABELS[form]})
    else:
        data = encoded(picture(), kind, xmp=LABELS[form])
    found = read_provenance(data)
    assert found.declares_ai
    assert found.declared_generator == _LABEL["ContentProducer"]
    assert found.declared_where == ("XMP TC260:AIGC, label 1 (generated)",)


def test_the_label_is_read_from_the_other_places_of_the_guide() -> None:
    """The standard's guide also puts it in UserComment and in a PNG text of its name."""
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps({"AIGC": _LABEL}).encode()
    jpeg = read_provenance(encoded(picture(), "JPEG", exif=exif.tobytes()))
    assert jpeg.declared_where == ("EXIF UserComment, label 1 (generated)",)
    text = png(png_chunk(b"tEXt", b"AIGC\0" + json.dumps(_LABEL).encode()))
    assert read_provenance(text).declared_where == ("PNG tEXt AIGC, label 1 (generated)",)


@pytest.mark.parametrize(
    ("label", "words"), [("2", "possibly generated"), ("3", "suspected to be generated")]
)
def test_the_degree_of_the_label_is_kept(label: str, words: str) -> None:
    """Labels that a platform set on its uploader's word, or on suspicion, say so."""
    found = read_provenance(
        encoded(picture(), "JPEG", xmp=packet(f"<T:AIGC>{escaped({'Label': label})}</T:AIGC>"))
    )
    assert found.declared_where == (f"XMP TC260:AIGC, label {label} ({words})",)


@pytest.mark.parametrize("value", ["0", "4", "yes", "", "{&quot;Label&quot;: &quot;0&quot;}"])
def test_other_values_are_no_label(value: str) -> None:
    """Values that the standard does not know declare nothing."""
    data = encoded(picture(), "JPEG", xmp=packet(f"<T:AIGC>{value}</T:AIGC>"))
    assert not read_provenance(data).declares_ai


@pytest.mark.parametrize(
    ("inner", "generator"),
    [
        ("<i:AISystemUsed>Imagen 4</i:AISystemUsed>", "Imagen 4"),
        ("<xmp:CreatorTool>Draw Things</xmp:CreatorTool>", "Draw Things"),
        ("<photoshop:Credit>Made with Google AI</photoshop:Credit>", "Google AI"),
    ],
)
def test_generators_are_named_from_xmp(inner: str, generator: str) -> None:
    """The properties that hold the name of a system or of a program name generators."""
    found = read_provenance(encoded(picture(), "JPEG", xmp=packet(inner)))
    assert (found.declares_ai, found.declared_generator) == (True, generator)


def test_an_editor_in_xmp_declares_nothing() -> None:
    """A program that does more than generate is no mark."""
    inner = "<xmp:CreatorTool>Adobe Photoshop 26.0</xmp:CreatorTool>"
    assert not read_provenance(encoded(picture(), "JPEG", xmp=packet(inner))).declares_ai
