"""The forward processes that noise predictors are trained on, and the schedulers that state them.

The variance-preserving process (`z_t = sqrt(a_t) z + sqrt(1 - a_t) e`) has networks that predict
epsilon or v; rectified flow is a straight line (`z_s = (1 - s) z + s e`); EDM preconditions its
network (Karras et al., NeurIPS 2022, arXiv 2206.00364, table 1). A scheduler's other options
(Karras, exponential, beta and shifted schedules, its solver) choose at which levels a sampler
stops. The level that belongs to a step does not depend on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detection.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

EPSILON, VELOCITY, FLOW, EDM = "epsilon", "v_prediction", "flow", "edm"

#: Schedulers of the variance-preserving process; all read the level of a step from one table.
VARIANCE_PRESERVING = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
#: Those of them that sample a rectified flow where they are told `use_flow_sigmas`.
FLOW_SIGMAS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
FLOW_MATCHING = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
PRECONDITIONED = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")

_TOKENS = "its network predicts tokens, not noise"
_FAMILY = "a process of its own, for which no predictor is supported"
#: Why a scheduler of diffusers is refused, by the name of its class.
REFUSED_SCHEDULERS: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "a consistency model predicts the clean image, not noise",
    "CogVideoXDDIMScheduler": _FAMILY,
    "CogVideoXDPMScheduler": _FAMILY,
    "ConsistencyDecoderScheduler": _FAMILY,
    "CosineDPMSolverMultistepScheduler": "its network is fed the arc tangent of the noise level",
    "DDIMInverseScheduler": "it inverts images and states no model's own process",
    "DDPMWuerstchenScheduler": "its network is fed a ratio of the steps",
    "DPMSolverMultistepInverseScheduler": "it inverts images and states no model's own process",
    "DPMSolverSDEScheduler": "it needs torchsde, which is no dependency",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": "its network is fed two times of a flow map",
    "HeliosDMDScheduler": _FAMILY,
    "HeliosScheduler": _FAMILY,
    "IPNDMScheduler": "its sine has no table of levels that a step belongs to",
    "KarrasVeScheduler": "its process explodes the variance, on pixels",
    "LTXEulerAncestralRFScheduler": _FAMILY,
    "MiniMaxH3Scheduler": _FAMILY,
    "PiflowScheduler": _FAMILY,
    "RFD4ProteinaScheduler": _FAMILY,
    "RePaintScheduler": "it inpaints and states no model's own process",
    "SCMScheduler": "its network is fed the angle of a trigonometric flow",
    "ScoreSdeVeScheduler": "its process explodes the variance, and its network predicts the score",
    "ScoreSdeVpScheduler": "its network is fed continuous times and predicts the score",
    "UnCLIPScheduler": "a process on pixels or on embeddings",
    "VQDiffusionScheduler": _TOKENS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioning:
    """The levels of an EDM network: sigmas float32 (T,) rising, and the deviation of the data.

    `sign` is 1 where the network's output is added to the skipped input (prediction type epsilon),
    and -1 where it is subtracted (v).
    """

    sigmas: Tensor
    sigma_data: float
    sign: int

    def level(self, step: int) -> tuple[float, float]:
        """Return sigma of a step and `sqrt(sigma^2 + sigma_data^2)`."""
        sigma = float(self.sigmas[step])
        return sigma, math.hypot(sigma, self.sigma_data)

    def add_noise(self, latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the network's scaled input and the output that would denoise it exactly."""
        sigma, spread = self.level(step)
        noised = latents / spread + (sigma / spread) * noise
        target = (sigma / self.sigma_data * latents - self.sigma_data * noise) / spread
        return noised, self.sign * target

    def clean_and_noise(self, noised: Tensor, answer: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Split the network's scaled input by its answer."""
        sigma, spread = self.level(step)
        skipped = self.sigma_data**2 / spread * noised
        clean = skipped + self.sign * sigma * self.sigma_data / spread * answer
        return clean, (spread * noised - clean) / sigma


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """The forward process: how clean latents and noise mix at a step, and what is predicted.

    `alphas_cumprod` is float32 (T,) for the variance-preserving kinds; `preconditioning` is given
    for EDM. The noise level of flow at step t of `steps` is t / steps.
    """

    prediction: str
    steps: int
    alphas_cumprod: Tensor | None = None
    preconditioning: Preconditioning | None = None

    def add_noise(self, latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Noise latents (B, C, h, w) to `step`; returns them and the prediction target."""
        if self.preconditioning is not None:
            return self.preconditioning.add_noise(latents, noise, step)
        if self.prediction == FLOW:
            sigma = step / self.steps
            return (1 - sigma) * latents + sigma * noise, noise - latents
        signal, spread = self.alpha_sigma(step)
        noised = signal * latents + spread * noise
        if self.prediction == VELOCITY:
            return noised, signal * noise - spread * latents
        return noised, noise

    def timestep(self, step: int) -> float:
        """Return what the network is told of a step: the step, or EDM's `log(sigma) / 4`."""
        if self.preconditioning is not None:
            return math.log(self.preconditioning.level(step)[0]) / 4
        return step

    def alpha_sigma(self, step: int) -> tuple[float, float]:
        """Return (sqrt(a_t), sqrt(1 - a_t)) of the variance-preserving process."""
        if self.alphas_cumprod is None:
            raise SettingsError(f"a process of kind {self.prediction} preserves no variance")
        kept = float(self.alphas_cumprod[step])
        return kept**0.5, (1 - kept) ** 0.5


def noise_schedule_from_scheduler(config: Mapping[str, Any]) -> NoiseSchedule:
    """Build the process from a diffusers scheduler configuration.

    Without a `_class_name` it is read as DDPM's. Raises `SettingsError` naming the class, the
    option or the prediction type that is not supported.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    if name in FLOW_MATCHING:
        return _flow_matching(name, config)
    if name not in VARIANCE_PRESERVING + PRECONDITIONED:
        known = ", ".join(VARIANCE_PRESERVING + FLOW_MATCHING + PRECONDITIONED)
        reason = REFUSED_SCHEDULERS.get(name, f"known are {known}")
        raise SettingsError(f"the noise schedule of {name} is not supported: {reason}")
    prediction = str(config.get("prediction_type", EPSILON))
    if config.get("use_flow_sigmas") or prediction == "flow_prediction":
        return _flow_sigmas(name, prediction, config)
    if prediction not in {EPSILON, VELOCITY}:
        raise SettingsError(f"prediction type {prediction!r} is not supported: epsilon, v or flow")
    if config.get("timestep_type") == "continuous":
        raise SettingsError(
            f"{name} with timestep_type continuous is not supported:"
            " its network is fed the logarithm of the noise level"
        )
    scheduler = _build(name, config)
    if name in PRECONDITIONED:
        # The scheduler's own levels fall to sigma_min, with a last one of zero.
        sigmas = scheduler.sigmas[:-1].flip(0)
        preconditioning = Preconditioning(
            sigmas=sigmas,
            sigma_data=float(scheduler.config.sigma_data),
            sign=1 if prediction == EPSILON else -1,
        )
        return NoiseSchedule(prediction=EDM, steps=len(sigmas), preconditioning=preconditioning)
    alphas = scheduler.alphas_cumprod
    return NoiseSchedule(prediction=prediction, steps=len(alphas), alphas_cumprod=alphas)


def _flow_matching(name: str, config: Mapping[str, Any]) -> NoiseSchedule:
    if config.get("invert_sigmas"):
        raise SettingsError(f"{name} with invert_sigmas is not supported: its times run backwards")
    return NoiseSchedule(prediction=FLOW, steps=int(config.get("num_train_timesteps", 1000)))


def _flow_sigmas(name: str, prediction: str, config: Mapping[str, Any]) -> NoiseSchedule:
    """Read the flow of a solver that also serves the variance-preserving process."""
    if name not in FLOW_SIGMAS or not config.get("use_flow_sigmas"):
        raise SettingsError(f"{name} with {prediction} but no flow sigmas is not supported")
    if prediction != "flow_prediction":
        raise SettingsError(
            f"{name} with use_flow_sigmas and prediction type {prediction!r} is not supported"
        )
    others = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    for option in others:
        # Only UniPC turns Karras levels into levels of a flow; the others mix the two processes.
        mixed = (name, option) != ("UniPCMultistepScheduler", "use_karras_sigmas")
        if config.get(option) and mixed:
            raise SettingsError(f"{name} with use_flow_sigmas and {option} is not supported")
    return NoiseSchedule(prediction=FLOW, steps=int(config.get("num_train_timesteps", 1000)))


def _build(name: str, config: Mapping[str, Any]) -> Any:
    """Build the scheduler itself: each class has its own defaults and kinds of table."""
    import diffusers

    # Only sampling reads it, and it needs scipy.
    options = {key: value for key, value in config.items() if key != "use_beta_sigmas"}
    try:
        return getattr(diffusers, name).from_config(options)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise SettingsError(f"the noise schedule of {name} cannot be built: {error}") from error
