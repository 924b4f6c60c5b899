"""`make bench-gpu`: what a GPU changes, in one script under ten minutes.

1. scores of the bundle on the CPU against the device, and the error of half precision;
2. LaRE images a second on a Stable-Diffusion-1.5-sized generator of random weights: batched in half
   precision, against the published way (one image a pass, float32);
3. images a second of the detector alone and of the worker's decode pool, batcher and scorer.

Without a GPU everything runs on the CPU with tiny sizes: the same code, figures without meaning.
Prints a table on standard error and one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image

from detection.bundle import load_bundle
from detection.detector import Detector
from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import noise_schedule_from_scheduler
from detection.lare import lare_map
from detection.networks.branch_configs import LareConfig
from worker.decoding.pool import DecodePool
from worker.scoring.batcher import Batcher
from worker.settings import Intake

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from detection.score import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured: U-Net and autoencoder widths, view side, batch, images."""

    unet: tuple[int, ...]
    autoencoder: tuple[int, ...]
    groups: int
    text: int
    side: int
    batch: int
    views: int
    images: int
    image_side: int


#: Widths of Stable Diffusion 1.5.
FULL = Sizes(
    unet=(320, 640, 1280, 1280),
    autoencoder=(128, 256, 512, 512),
    groups=32,
    text=768,
    side=256,
    batch=16,
    views=64,
    images=512,
    image_side=512,
)
TINY = Sizes(
    unet=(8, 8, 16, 16),
    autoencoder=(8, 8, 8, 8),
    groups=4,
    text=16,
    side=64,
    batch=2,
    views=4,
    images=8,
    image_side=96,
)


def main() -> None:
    """Run the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    sizes = FULL if options.device.startswith("cuda") else TINY
    report = {
        "device": name_of(options.device),
        "torch": torch.__version__,
        "tiny": sizes is TINY,
        **scores(options.bundle, options.device, sizes),
        **lare(options.device, sizes),
        **throughput(options.bundle, options.device, sizes),
    }
    for name, value in report.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{name:<36} {shown}", file=sys.stderr)
    print(json.dumps(report))


def name_of(device: str) -> str:
    """Name the hardware."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def pictures(count: int, side: int) -> list[NDArray[np.uint8]]:
    """Make smooth random images, uint8 (side, side, 3), the same every time."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 16, side // 16, 3), dtype=np.uint8)
    return [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        for image in coarse
    ]


def scores(bundle: str, device: str, sizes: Sizes) -> dict[str, float]:
    """Compare branch logits of the same images: CPU float32 against the device and its bf16."""
    images = pictures(min(sizes.images, 32), sizes.image_side)
    reference = Detector.load(bundle).score(images)
    found: dict[str, float] = {}
    loaded = load_bundle(bundle)
    for arithmetic in ("float32", "bfloat16"):
        manifest = loaded.manifest.model_copy(update={"arithmetic": arithmetic})
        detector = Detector(replace(loaded, manifest=manifest), device=device)
        for branch in reference[0].branches:
            found[f"{arithmetic}_{branch}_logit_error_max"] = max(
                abs(one.branches[branch] - other.branches[branch])
                for one, other in zip(reference, detector.score(images), strict=True)
            )
    return found


def lare(device: str, sizes: Sizes) -> dict[str, float]:
    """Time the error map both ways and state how far half precision moves it."""
    config = LareConfig(side=sizes.side)
    generator = random_generator(sizes).eval().requires_grad_(False)
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    views = noise_bank((sizes.views, 3, config.side, config.side), seed=1).clamp(-1, 1).to(device)
    latent = config.side // generator.factor
    noises = noise_bank((config.ensemble, 4, latent, latent), seed=2).to(device)

    def batched(part: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return lare_map(
                generator, part.to(memory_format=torch.channels_last), noises, config.step
            )

    def published(part: Tensor) -> Tensor:
        return torch.cat([lare_map(generator, view, noises, config.step) for view in part.split(1)])

    with torch.inference_mode():
        half, exact = batched(views[: sizes.batch]), published(views[: sizes.batch])
        ours_s = timed(device, lambda: [batched(part) for part in views.split(sizes.batch)])
        theirs_s = timed(device, lambda: published(views))
    return {
        "lare_bf16_relative_error_mean": float((half - exact).abs().mean() / exact.mean()),
        "lare_batched_images_per_s": sizes.views / ours_s,
        "lare_published_way_images_per_s": sizes.views / theirs_s,
        "lare_speed_ratio": theirs_s / ours_s,
    }


def random_generator(sizes: Sizes) -> Generator:
    """Build a generator of Stable Diffusion 1.5's architecture with random weights."""
    torch.manual_seed(0)
    levels = len(sizes.autoencoder)
    autoencoder = AutoencoderKL(
        block_out_channels=sizes.autoencoder,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=sizes.groups,
    )
    predictor = UNet2DConditionModel(
        block_out_channels=sizes.unet,
        cross_attention_dim=sizes.text,
        norm_num_groups=sizes.groups,
    )
    schedule = noise_schedule_from_scheduler(DDPMScheduler().config)
    text = noise_bank((1, 77, sizes.text), seed=3)
    return Generator(autoencoder, predictor, schedule, {"encoder_hidden_states": text})


def throughput(bundle: str, device: str, sizes: Sizes) -> dict[str, float]:
    """Time the detector on decoded images, then the worker's path from JPEG bytes on."""
    detector = Detector.load(bundle, device=device)
    images = pictures(min(sizes.images, 64), sizes.image_side)
    images = (images * (sizes.images // len(images) + 1))[: sizes.images]
    files = [jpeg(image) for image in images]
    detector.score(images[: sizes.batch])
    batches = [images[start : start + sizes.batch] for start in range(0, len(images), sizes.batch)]
    alone_s = timed(device, lambda: [detector.score(batch) for batch in batches])
    worker_s = worker_seconds(detector, files, sizes.batch)
    return {
        "detector_images_per_s": len(images) / alone_s,
        "worker_images_per_s": len(images) / worker_s,
    }


def worker_seconds(detector: Detector, files: Sequence[bytes], batch: int) -> float:
    """Send files through the decode pool and the batcher to one device thread."""
    batcher: Batcher[NDArray[np.uint8], Score] = Batcher(
        max_batch=batch, max_wait_s=0.02, capacity=len(files)
    )
    pool = DecodePool(Intake())
    pool.start()
    left = len(files)

    def one(data: bytes) -> Score:
        with pool.decode(data, wait_s=60) as decoded:
            return batcher.submit(decoded.pixels).result()

    def device_thread() -> None:
        nonlocal left
        while left:
            left -= batcher.run_next(detector.score, idle_s=0.5)

    try:
        with ThreadPoolExecutor(3 * batch) as threads:
            began = time.perf_counter()
            scoring = threading.Thread(target=device_thread)
            scoring.start()
            done = sum(1 for _ in threads.map(one, files))
            seconds = time.perf_counter() - began
            scoring.join()
    finally:
        pool.close()
    if done != len(files):
        raise RuntimeError(f"{done} of {len(files)} files came back")
    return seconds


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode one image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def timed(device: str, work: Any) -> float:
    """Return the seconds that `work()` takes, the device's queue included."""
    work()
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: str) -> None:
    """Wait for what was queued on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
