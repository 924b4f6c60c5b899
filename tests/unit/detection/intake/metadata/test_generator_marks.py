"""Marks of generators, in files as the named programs write them."""

from __future__ import annotations

import json
import zlib

import pytest
from PIL import Image

from detection.intake.provenance import read_provenance
from tests.support.images.bad_files import encoded, picture, png, png_chunk

_PROMPT = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 1}}})
_WORKFLOW = json.dumps({"nodes": [{"type": "KSampler"}], "links": []})
_PARAMETERS = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
_INVOKE = json.dumps({"positive_prompt": "a cat", "app_version": "5.0"})
_UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def text(keyword: str, value: str) -> bytes:
    """A PNG with one tEXt chunk."""
    return png(png_chunk(b"tEXt", keyword.encode() + b"\0" + value.encode()))


def tagged(kind: str, tags: dict[int, object], comment: bytes | None = None) -> bytes:
    """A picture with EXIF tags and a UserComment."""
    exif = Image.Exif()
    exif.update(tags)
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    return encoded(picture(), kind, exif=exif.tobytes())


PNGS = {
    "A1111": (text("parameters", _PARAMETERS), "Stable Diffusion web UI"),
    "A1111 with its version": (
        text("parameters", _PARAMETERS + ", Version: v1.10.1"),
        "Stable Diffusion web UI",
    ),
    "Forge": (
        text("parameters", _PARAMETERS + ", Version: f2.0.1v1.10.1-previous-659"),
        "Stable Diffusion WebUI Forge",
    ),
    "SD.Next": (text("parameters", _PARAMETERS + ", App: SD.Next, Version: 0eb4a98"), "SD.Next"),
    "Fooocus": (
        png(
            png_chunk(b"tEXt", b'parameters\0{"prompt": "a cat", "base_model": "x"}'),
            png_chunk(b"tEXt", b"fooocus_scheme\0fooocus"),
        ),
        "Fooocus",
    ),
    "Fooocus in the form of A1111": (
        text("parameters", _PARAMETERS + ", Version: Fooocus v2.5.5"),
        "Fooocus",
    ),
    "Ruined Fooocus": (
        text("parameters", '{"Prompt": "a", "software": "RuinedFooocus"}'),
        "Ruined Fooocus",
    ),
    "SwarmUI": (text("parameters", '{"sui_image_params": {"prompt": "a"}}'), "SwarmUI"),
    "ComfyUI prompt": (text("prompt", _PROMPT), "ComfyUI"),
    "ComfyUI workflow": (text("workflow", _WORKFLOW), "ComfyUI"),
    "ComfyUI, not a number": (text("prompt", _PROMPT.replace("1", "NaN")), "ComfyUI"),
    "InvokeAI": (text("invokeai_metadata", _INVOKE), "InvokeAI"),
    "InvokeAI before 3": (text("sd-metadata", _INVOKE), "InvokeAI"),
    "InvokeAI at first": (text("Dream", '"a cat" -s 50 -S 42 -W 512 -H 512'), "InvokeAI"),
    "NovelAI": (text("Software", "NovelAI"), "NovelAI"),
    "NovelAI comment": (
        text("Comment", '{"uncond_scale": 1.0, "steps": 28, "sampler": "k_euler"}'),
        "NovelAI",
    ),
    "Midjourney": (
        text("Description", f"a cat --v 6.1 Job ID: {_UUID}"),
        "Midjourney",
    ),
    "Easy Diffusion": (text("use_stable_diffusion_model", "sd-v1-5"), "Easy Diffusion"),
    "zTXt": (
        png(png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(_PARAMETERS.encode()))),
        "Stable Diffusion web UI",
    ),
    "iTXt": (
        png(png_chunk(b"iTXt", b"parameters\0\0\0\0\0" + _PARAMETERS.encode())),
        "Stable Diffusion web UI",
    ),
}


@pytest.mark.parametrize("name", PNGS)
def test_generators_are_named_from_png_texts(name: str) -> None:
    """What a generator writes into a PNG declares AI and names the generator and the place."""
    data, generator = PNGS[name]
    found = read_provenance(data)
    assert found.declares_ai
    assert found.declared_generator == generator
    assert found.declared_where[0].startswith("PNG ")


EXIF = {
    "ComfyUI WebP": (
        tagged("WEBP", {0x0110: f"prompt:{_PROMPT}", 0x010F: f"workflow:{_WORKFLOW}"}),
        "ComfyUI",
    ),
    "ComfyUI WebP, other nodes": (
        tagged("WEBP", {0x010E: f"Workflow: {_WORKFLOW}", 0x010F: f"Prompt: {_PROMPT}"}),
        "ComfyUI",
    ),
    "ComfyUI JPEG": (
        tagged("JPEG", {}, json.dumps({"prompt": _PROMPT, "workflow": _WORKFLOW}).encode()),
        "ComfyUI",
    ),
    "A1111 JPEG": (
        tagged("JPEG", {}, b"UNICODE\0" + _PARAMETERS.encode("utf-16-be")),
        "Stable Diffusion web UI",
    ),
    "A1111 JPEG, little end first": (
        tagged("JPEG", {}, b"UNICODE\0" + _PARAMETERS.encode("utf-16-le")),
        "Stable Diffusion web UI",
    ),
    "A1111 AVIF": (
        tagged("AVIF", {}, b"ASCII\0\0\0" + _PARAMETERS.encode()),
        "Stable Diffusion web UI",
    ),
    "NovelAI WebP": (
        tagged("WEBP", {}, b"ASCII\0\0\0" + b'{"Software": "NovelAI", "Comment": "{}"}'),
        "NovelAI",
    ),
    "Ideogram": (tagged("JPEG", {0x010F: "Ideogram AI"}), "Ideogram"),
    "Grok": (
        tagged("JPEG", {0x010E: "Signature: " + "Ab0+" * 20, 0x013B: _UUID}),
        "Grok",
    ),
}


@pytest.mark.parametrize("name", EXIF)
def test_generators_are_named_from_exif(name: str) -> None:
    """What a generator writes into EXIF tags declares AI and is never shown as a camera's name."""
    data, generator = EXIF[name]
    found = read_provenance(data)
    assert found.declares_ai
    assert found.declared_generator == generator
    assert found.declared_where[0].startswith("EXIF ")
    assert found.exif.make in {None, "Ideogram AI"}
    assert found.exif.model is None


@pytest.mark.parametrize(
    "data",
    [
        text("parameters", "aperture: 2.8"),
        text("prompt", "which picture do you mean?"),
        text("workflow", '{"steps": ["develop", "sharpen"]}'),
        text("Description", "Job ID: 12"),
        text("Comment", "made with Stable Diffusion? no, with a camera"),
        text("Software", "GIMP 2.10"),
        text("Label", '{"Label": "1"}'),
        tagged("JPEG", {0x010E: "Steps: 20 of them, sampler: none", 0x010F: "NIKON"}),
        tagged("JPEG", {0x010E: "Signature: " + "Ab0+" * 20, 0x013B: "Kim"}),
        tagged("JPEG", {}, b"ASCII\0\0\0" + b'{"Label": "1"}'),
    ],
)
def test_words_of_photographs_are_no_marks(data: bytes) -> None:
    """Captions, editors and other data of the same names declare nothing."""
    found = read_provenance(data)
    assert not found.declares_ai
    assert found.declared_generator is None
    assert found.declared_where == ()


def test_software_of_a_png_is_shown() -> None:
    """PNG has a text of its own for the software that wrote it."""
    assert read_provenance(text("Software", "NovelAI")).exif.software == "NovelAI"


@pytest.mark.parametrize("value", ["[" * 5000, '{"a":' * 5000, '{"software": []}', '{"Label": {}}'])
@pytest.mark.parametrize("keyword", ["parameters", "prompt", "AIGC", "Comment"])
def test_hostile_texts_raise_nothing(keyword: str, value: str) -> None:
    """Nested, broken and odd JSON is no mark and no error."""
    assert not read_provenance(text(keyword, value)).declares_ai
