"""The photographs that the wheels of scikit-learn and scikit-image carry, named one by one.

Left out of the same folders: drawings and diagrams (`chessboard_*`, `color`, `horse`, `logo`,
`phantom`), a scanned page (`page`), what a computer reconstructed from a hologram (`cell`), an
enlarged detail of one colour channel (`microaneurysms`), and pictures below 64 pixels
(`lfw_subset`, `multipage*`, `no_time_for_that_tiny`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from detection.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Photograph:
    """One file of an installed package."""

    package: str
    name: str
    says: str

    @property
    def path(self) -> Path:
        """Where the file lies; raises `SettingsError` when the package does not carry it."""
        path = package_folder(self.package) / self.name
        if not path.is_file():
            raise SettingsError(f"{path} is missing: install the versions of requirements.lock")
        return path


def package_folder(package: str) -> Path:
    """Return an installed package's folder without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SettingsError(f"the demo needs {package}: install unlatent with the extra `local`")
    return Path(spec.origin).parent


PHOTOGRAPHS = (
    Photograph("sklearn", "datasets/images/china.jpg", "a pagoda above a lake"),
    Photograph("sklearn", "datasets/images/flower.jpg", "a dahlia before dark leaves"),
    Photograph("skimage", "data/astronaut.png", "Eileen Collins, NASA portrait"),
    Photograph("skimage", "data/brick.png", "a brick wall, grey, rectified"),
    Photograph("skimage", "data/camera.png", "a man behind a film camera, grey"),
    Photograph("skimage", "data/chelsea.png", "a cat's face"),
    Photograph("skimage", "data/clock_motion.png", "a wall clock in motion blur, grey"),
    Photograph("skimage", "data/coffee.png", "a cup of coffee on a wooden table"),
    Photograph("skimage", "data/coins.png", "Greek coins in rows, grey, an old print"),
    Photograph("skimage", "data/grass.png", "a lawn from above, grey"),
    Photograph("skimage", "data/gravel.png", "gravel from above, grey"),
    Photograph("skimage", "data/hubble_deep_field.jpg", "galaxies, through the Hubble telescope"),
    Photograph("skimage", "data/ihc.png", "stained tissue, through a microscope"),
    Photograph("skimage", "data/moon.png", "the surface of the Moon, grey"),
    Photograph("skimage", "data/motorcycle_left.png", "a motorcycle in a garage, left camera"),
    Photograph("skimage", "data/motorcycle_right.png", "the same, right camera"),
    Photograph("skimage", "data/retina.jpg", "a retina, through a fundus camera"),
    Photograph("skimage", "data/rocket.jpg", "a rocket on its pad at night"),
    Photograph("skimage", "data/text.png", "handwriting on ruled paper, grey"),
)
