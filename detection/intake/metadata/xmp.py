"""XMP packets (ISO 16684-1): the few properties that speak of a picture's origin."""

from __future__ import annotations

from xml.parsers import expat

#: Longest value that is kept, in characters.
_MAX_VALUE = 64 * 1024
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

DIGITAL_SOURCE_TYPE = "Iptc4xmpExt:DigitalSourceType"
AI_SYSTEM_USED = "Iptc4xmpExt:AISystemUsed"
CREATOR_TOOL = "xmp:CreatorTool"
CREDIT = "photoshop:Credit"
#: The label of GB 45438-2025: JSON in one property, or a structure with the same field names.
AIGC = "TC260:AIGC"
AIGC_FIELDS = ("Label", "ContentProducer", "ProduceID", "ContentPropagator", "PropagateID")

_AIGC_NAMESPACE = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_PROPERTIES = {
    f"{_IPTC} DigitalSourceType": DIGITAL_SOURCE_TYPE,
    f"{_IPTC} AISystemUsed": AI_SYSTEM_USED,
    "http://ns.adobe.com/xap/1.0/ CreatorTool": CREATOR_TOOL,
    "http://ns.adobe.com/photoshop/1.0/ Credit": CREDIT,
    f"{_AIGC_NAMESPACE} AIGC": AIGC,
} | {f"{_AIGC_NAMESPACE} {name}": f"{AIGC}/{name}" for name in AIGC_FIELDS}


class _Entities(Exception):
    """The packet declares entities: they are how a small one becomes a huge one; XMP has none."""


class _Reader:
    """The handlers of one packet's parser."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._open: list[str | None] = []
        self._texts: list[str] = []
        self._inside = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Open an element."""
        known = _PROPERTIES.get(name)
        self._open.append(known)
        if known is not None:
            self._inside += 1
            self._texts.clear()
            self._keep(known, attributes.get(f"{_RDF} resource", ""))
        for attribute, value in attributes.items():
            if attribute in _PROPERTIES:
                self._keep(_PROPERTIES[attribute], value)

    def text(self, characters: str) -> None:
        """Take text, whatever elements lie between it and its property."""
        if self._inside:
            self._texts.append(characters)

    def end(self, _name: str) -> None:
        """Close an element."""
        known = self._open.pop()
        if known is not None:
            self._inside -= 1
            self._keep(known, "".join(self._texts))
            self._texts.clear()

    def refuse(self, *_: object) -> None:
        """End at a document type."""
        raise _Entities

    def _keep(self, name: str, value: str) -> None:
        if value := value.strip():
            self.found.setdefault(name, value[:_MAX_VALUE])


def read_properties(packet: bytes) -> dict[str, str]:
    """Read the known properties, written as attribute, `rdf:resource`, text or list of texts.

    Of a property that stands twice the first value counts, of a packet that breaks off what stands
    before. A packet with a document type says nothing.
    """
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.CharacterDataHandler = reader.text
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.refuse
    try:
        parser.Parse(packet.strip(b"\0"), True)
    except _Entities:
        return {}
    except (expat.ExpatError, ValueError):
        pass
    return reader.found
