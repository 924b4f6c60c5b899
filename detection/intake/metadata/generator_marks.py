"""Marks by which generators name themselves in the texts of a file.

None of these forms is a standard but the label of GB 45438-2025; each is what the named program
writes, as its own source or documentation says. A mark is looked for only in the field where its
program puts it, and in the form that it has there: the words alone, in a caption for one, are none.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from detection.intake.metadata import xmp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class FieldKind(StrEnum):
    """Where a text stands; a program's name counts only where programs write theirs."""

    PNG = "PNG"
    EXIF = "EXIF"
    XMP = "XMP"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextField:
    """One text of a file: `name` is its keyword, tag or property, `where` how people are told."""

    kind: FieldKind
    name: str
    text: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A statement that a model made the picture: where it stands, and which generator it names."""

    where: str
    generator: str | None = None


#: Keywords of PNG texts that only one program writes.
_KEYWORDS = {
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "invokeai_workflow": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "fooocus_scheme": "Fooocus",
    "use_stable_diffusion_model": "Easy Diffusion",
    "smproj": "Stability Matrix",
}
#: Fields that hold a program's name, or a credit to one.
_PROGRAM_FIELDS = {
    (FieldKind.PNG, "Software"),
    (FieldKind.PNG, "Source"),
    (FieldKind.EXIF, "Software"),
    (FieldKind.EXIF, "Make"),
    (FieldKind.XMP, xmp.CREATOR_TOOL),
    (FieldKind.XMP, xmp.CREDIT),
}
#: How the names of programs that do nothing but generate begin, in lower case.
_PROGRAMS = {
    "adobe firefly": "Adobe Firefly",
    "automatic1111": "Stable Diffusion web UI",
    "comfyui": "ComfyUI",
    "dall-e": "DALL-E",
    "dall·e": "DALL-E",
    "draw things": "Draw Things",
    "easy diffusion": "Easy Diffusion",
    "fooocus": "Fooocus",
    "ideogram ai": "Ideogram",
    "invokeai": "InvokeAI",
    "made with google ai": "Google AI",
    "midjourney": "Midjourney",
    "novelai": "NovelAI",
    "ruinedfooocus": "Ruined Fooocus",
    "sd.next": "SD.Next",
    "stable diffusion": "Stable Diffusion",
    "swarmui": "SwarmUI",
}
#: Values by which a JSON object names its program.
_JSON_VALUES = {
    "Software": {"NovelAI": "NovelAI"},
    "software": {"RuinedFooocus": "Ruined Fooocus"},
}
#: Keys of a JSON object that only one program writes, looked for in this order.
_JSON_KEYS = {
    "sui_image_params": "SwarmUI",
    "invokeai_metadata": "InvokeAI",
    "use_stable_diffusion_model": "Easy Diffusion",
    "uncond_scale": "NovelAI",
    "v4_prompt": "NovelAI",
    "noise_schedule": "NovelAI",
    "base_model": "Fooocus",
}
_PARTS = ("prompt", "workflow")
#: The last lines of what web UIs write: "Steps: 20, Sampler: Euler a, CFG scale: 7, …".
_PARAMETERS = re.compile(r"^Steps: \d+, [^\n]*\b(?:Sampler|CFG scale|Seed|Model): ", re.MULTILINE)
_VERSION = re.compile(r"(?:^|, )Version: ([^,\n]+)", re.MULTILINE)
_APP = re.compile(r"(?:^|, )App: ([^,\n]+)", re.MULTILINE)
#: Forks of the web UI by how their versions begin; its own begin with "v" and a number.
_VERSIONS = {
    "f": "Stable Diffusion WebUI Forge",
    "classic": "Stable Diffusion WebUI Forge",
    "neo": "Stable Diffusion WebUI Forge",
    "fooocus": "Fooocus",
    "comfyui": "ComfyUI",
}
#: The command line that InvokeAI wrote at first: steps and seed.
_DREAM = (re.compile(r" -s ?\d"), re.compile(r" -S ?\d"))
_JOB_ID = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_SIGNATURE = re.compile(r"Signature: [A-Za-z0-9+/=]{40,}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: A text that holds data: JSON, perhaps behind the name of what it is ("workflow:{…").
_DATA = re.compile(r"\s*(?:([\w. -]{1,64}):)?\s*([\[{].*)", re.DOTALL)
#: The label's values: the content is generated, may be by its uploader's word, is suspected to be.
_LABELS = {"1": "generated", "2": "possibly generated", "3": "suspected to be generated"}
#: What tells the label from any other object with a field named Label.
_OTHER_FIELDS = frozenset(xmp.AIGC_FIELDS) - {"Label"}


def find_marks(fields: Iterable[TextField]) -> list[Mark]:
    """Find the marks of generators and of GB 45438-2025 in the texts of one file."""
    fields = list(fields)
    found = [mark for field in fields if (mark := _mark(field)) is not None]
    return found + _grok(fields)


def holds_data(text: str) -> bool:
    """Say whether a text is JSON or the like, where a name was to be expected."""
    return _DATA.match(text) is not None


def aigc_mark(properties: Mapping[str, str]) -> Mark | None:
    """Read the label of GB 45438-2025 out of what `xmp.read_properties` found."""
    told: dict[str, Any] = {
        name: properties[f"{xmp.AIGC}/{name}"]
        for name in xmp.AIGC_FIELDS
        if f"{xmp.AIGC}/{name}" in properties
    }
    text = properties.get(xmp.AIGC, "")
    return _label(_object(text) or told or {"Label": text}, f"XMP {xmp.AIGC}")


def _mark(field: TextField) -> Mark | None:
    for rule in (_by_keyword, _by_program_name, _by_content):
        if (mark := rule(field)) is not None:
            return mark
    return None


def _by_keyword(field: TextField) -> Mark | None:
    """Know a text by the keyword that only one program writes."""
    if field.kind is FieldKind.XMP and field.name == xmp.AI_SYSTEM_USED:
        return Mark(where=field.where, generator=field.text)
    if field.kind is not FieldKind.PNG:
        return None
    if field.name == "AIGC":
        return _label(_object(field.text) or {}, field.where)
    generator = _KEYWORDS.get(field.name)
    if field.name == "Dream" and all(option.search(field.text) for option in _DREAM):
        generator = "InvokeAI"
    return Mark(where=field.where, generator=generator) if generator else None


def _by_program_name(field: TextField) -> Mark | None:
    """Know a program by its name in a field that holds one."""
    if (field.kind, field.name) not in _PROGRAM_FIELDS:
        return None
    name = field.text.strip().lower()
    found = (program for begin, program in _PROGRAMS.items() if name.startswith(begin))
    generator = next(found, None)
    return Mark(where=field.where, generator=generator) if generator else None


def _by_content(field: TextField) -> Mark | None:
    """Know a program by the form of what it wrote."""
    if field.kind is FieldKind.XMP:
        return None
    data = _DATA.match(field.text)
    told = _object(data[2]) if data else None
    generator = None
    if told is not None and data is not None:
        label = _inner(told.get("AIGC")) or (told if told.keys() & _OTHER_FIELDS else {})
        if mark := _label(label, field.where):
            return mark
        # A prompt or a workflow stands alone, or both stand in an object.
        objects = [((data[1] or field.name).strip().lower(), told)]
        objects += [(key, inner) for key in _PARTS if (inner := _inner(told.get(key)))]
        generator = next(filter(None, (_json_generator(*named) for named in objects)), None)
    elif _PARAMETERS.search(field.text):
        generator = _web_ui(field.text)
    elif field.name in {"Description", "ImageDescription"} and _JOB_ID.search(field.text):
        generator = "Midjourney"
    return Mark(where=field.where, generator=generator) if generator else None


def _json_generator(name: str, told: dict[str, Any]) -> str | None:
    """Say which program writes such an object under such a name."""
    for key, programs in _JSON_VALUES.items():
        if (program := programs.get(str(told.get(key)))) is not None:
            return program
    for key, program in _JSON_KEYS.items():
        if key in told and (key != "base_model" or "prompt" in told):
            return program
    # A workflow of ComfyUI; a prompt of its: nodes by their numbers, each of a class.
    if (name == "workflow" and isinstance(told.get("nodes"), list)) or any(
        isinstance(node, dict) and "class_type" in node for node in told.values()
    ):
        return "ComfyUI"
    return None


def _web_ui(text: str) -> str:
    """Name the program that wrote parameters; without its version it is any that has the form."""
    if "swarm_version" in text:
        return "SwarmUI"
    if app := _APP.search(text):
        return app[1].strip()
    version = found[1].strip().lower() if (found := _VERSION.search(text)) else ""
    for begin, program in _VERSIONS.items():
        if version.startswith(begin):
            # "f" begins other words too; of the fork's versions, numbers follow.
            if begin == "f" and not version[1:2].isdigit():
                continue
            return program
    return "Stable Diffusion web UI"


def _grok(fields: list[TextField]) -> list[Mark]:
    """Grok signs its pictures in one EXIF tag and names them in another."""
    exif = {field.name: field for field in fields if field.kind is FieldKind.EXIF}
    signature, artist = exif.get("ImageDescription"), exif.get("Artist")
    if (
        signature is not None
        and artist is not None
        and _SIGNATURE.fullmatch(signature.text)
        and _UUID.fullmatch(artist.text.lower())
    ):
        return [Mark(where=signature.where, generator="Grok")]
    return []


def _label(told: dict[str, Any], where: str) -> Mark | None:
    label = str(told.get("Label", "")).strip()
    if label not in _LABELS:
        return None
    producer = str(told.get("ContentProducer") or "").strip()
    return Mark(where=f"{where}, label {label} ({_LABELS[label]})", generator=producer or None)


def _inner(value: object) -> dict[str, Any] | None:
    """Return an object, given as one or as its JSON text."""
    if isinstance(value, dict):
        return value
    return _object(value) if isinstance(value, str) else None


def _object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; None for anything else."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
