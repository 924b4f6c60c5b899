"""Noise schedules against the schedulers and pipelines of diffusers.

A pipeline samples with its own scheduler while its network is replaced by one that knows the clean
latents: from its input it works out the noise by our level of the timestep, and answers with our
target. If level, scale or kind of prediction were wrong at any step, the noise would differ from
call to call and the sampler would end somewhere else than at the clean latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import diffusers.schedulers
import numpy as np
import pytest
import torch

from detection.errors import SettingsError
from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import (
    EDM,
    EPSILON,
    FLOW,
    FLOW_MATCHING,
    PRECONDITIONED,
    REFUSED_SCHEDULERS,
    VARIANCE_PRESERVING,
    VELOCITY,
    NoiseSchedule,
    noise_schedule_from_scheduler,
)
from detection.generators.predictors import unpack
from tests.support.bundles.tiny_bundle import tiny_autoencoder
from tests.support.generators.tiny_families import FAMILIES, sd, sd3, sdxl
from tests.support.generators.tiny_pipelines import (
    PIPELINES,
    START,
    sample_sd,
    sample_sd3,
    sample_sdxl,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # Schedulers turn tensors into arrays the old way, and pipelines set `steps_offset` to 1.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning"),
]
CLEAN = noise_bank((1, 4, 8, 8), seed=0)
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: Samplers that add noise of their own: only their end is looked at.
STOCHASTIC = {
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
}
#: Samplers that stop at their last level instead of at the clean latents.
NOISY_END = {"DEISMultistepScheduler", "SASolverScheduler", "TCDScheduler"}

#: Options without which a sampler clips, adds noise or stops early.
DETERMINISTIC: dict[str, dict[str, Any]] = {
    "DDIMParallelScheduler": {"clip_sample": False},
    "DDIMScheduler": {"clip_sample": False},
    "DDPMParallelScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"set_alpha_to_one": True, "skip_prk_steps": True},
}


class Oracle:
    """A network that knows the clean latents, for the schedule under test."""

    def __init__(self, schedule: NoiseSchedule, clean: Tensor) -> None:
        self.clean, self.noise = clean, torch.zeros(0)
        self.calls: list[tuple[Tensor, Tensor]] = []
        one, none = torch.ones(()), torch.zeros(())
        rows = []
        # A sampler of a flow begins where there is noise alone, which is no step of training.
        for step in range(schedule.steps + (schedule.prediction == FLOW)):
            signal, of_clean = schedule.add_noise(one, none, step)
            spread, of_noise = schedule.add_noise(none, one, step)
            rows.append([schedule.timestep(step), signal, spread, of_clean, of_noise])
        self._levels = np.array(rows, dtype=np.float64).T

    def answer(self, noised: Tensor, timestep: Tensor) -> Tensor:
        """Return our target of the noise that is in `noised` by our level of `timestep`."""
        at = float(timestep.flatten()[0])
        signal, spread, of_clean, of_noise = (
            float(np.interp(at, self._levels[0], row)) for row in self._levels[1:]
        )
        noise = (noised - signal * self.clean) / spread
        if not self.calls:
            self.noise = noise
        self.calls.append((noised, signal * self.clean + spread * self.noise))
        return of_clean * self.clean + of_noise * noise

    def check(self, found: Tensor, name: str, tolerance: float) -> None:
        """Assert that every call was fed our level of one noise, and the end is the clean one."""
        assert len(self.calls) > 3
        if name not in STOCHASTIC:
            for fed, ours in self.calls:
                torch.testing.assert_close(fed, ours, rtol=0, atol=tolerance)
        if name not in NOISY_END:
            torch.testing.assert_close(found, self.clean, rtol=0, atol=tolerance)


def deterministic(name: str, options: dict[str, Any]) -> Any:
    """Build a scheduler, without clipping and without noise of its own where it can do without."""
    scheduler = getattr(diffusers, name)(**options, **DETERMINISTIC.get(name, {}))
    if name == "SASolverScheduler":
        scheduler.tau_func = lambda _timestep: 0
    return scheduler


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """Our reading of a scheduler, as its configuration is saved."""
    config = {"_class_name": type(scheduler).__name__, **scheduler.config}
    return noise_schedule_from_scheduler(config)


def ask(oracle: Oracle, network: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the oracle answer in the place of a network's weights."""

    def forward(*given: Tensor, **named: Tensor) -> tuple[Tensor]:
        noised = given[0] if given else named["hidden_states"]
        return (oracle.answer(noised, given[1] if len(given) > 1 else named["timestep"]),)

    monkeypatch.setattr(network, "forward", forward)
    return network


#: Class, options and how far the levels are off where the sampler rounds its own timesteps.
VP_CASES: list[tuple[str, dict[str, Any], float]] = [
    *[
        (name, {"prediction_type": prediction, **SCALED}, 1e-3)
        for name in VARIANCE_PRESERVING
        for prediction in (EPSILON, VELOCITY)
        if (name, prediction) != ("PNDMScheduler", VELOCITY)
    ],
    # It averages the answers of several steps, and v changes with the step.
    ("PNDMScheduler", {"prediction_type": VELOCITY, **SCALED}, 0.15),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, 1e-3),
    ("HeunDiscreteScheduler", {}, 1e-3),
    (
        "DDIMScheduler",
        {
            "prediction_type": VELOCITY,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        1e-3,
    ),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, **SCALED}, 2e-2),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, **SCALED}, 2e-2),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True, **SCALED}, 2e-2),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 2e-2),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, **SCALED}, 5e-2),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, **SCALED}, 5e-2),
]


@pytest.mark.parametrize(("name", "options", "tolerance"), VP_CASES)
def test_a_pipeline_meets_the_levels_of_its_scheduler(
    name: str, options: dict[str, Any], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variance-preserving scheduler feeds its network what `add_noise` gives at that step."""
    scheduler = deterministic(name, options)
    assert schedule_of(scheduler).prediction == options.get("prediction_type", EPSILON)
    oracle = Oracle(schedule_of(scheduler), CLEAN)
    network, _, constants = sd()
    found = sample_sd(ask(oracle, network, monkeypatch), scheduler, constants)
    oracle.check(found, name, tolerance)


@pytest.mark.parametrize("name", PRECONDITIONED)
@pytest.mark.parametrize("prediction", [EPSILON, VELOCITY])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
def test_a_preconditioned_network_is_fed_as_its_pipeline_does(
    name: str, prediction: str, levels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDM's levels, scaled input, logarithmic time and output are those of SDXL's pipeline."""
    scheduler = getattr(diffusers, name)(
        prediction_type=prediction, sigma_schedule=levels, sigma_data=0.7
    )
    schedule = schedule_of(scheduler)
    assert schedule.prediction == EDM
    oracle = Oracle(schedule, CLEAN)
    network, _, constants = sdxl()
    found = sample_sdxl(ask(oracle, network, monkeypatch), scheduler, constants)
    oracle.check(found, name, 1e-3)


def test_a_preconditioned_step_is_a_level_of_the_scheduler() -> None:
    """A step numbers the scheduler's own sigmas from the least; the network is told `ln(s) / 4`."""
    scheduler = diffusers.EDMEulerScheduler(num_train_timesteps=50, sigma_data=0.5)
    schedule = schedule_of(scheduler)
    assert schedule.steps == 51
    for step in (0, 20, 50):
        sigma = scheduler.sigmas[:-1][50 - step]
        assert schedule.timestep(step) == pytest.approx(float(scheduler.timesteps[50 - step]))
        noised, target = schedule.add_noise(CLEAN, START, step)
        raw = CLEAN + sigma * START
        torch.testing.assert_close(noised, scheduler.precondition_inputs(raw, sigma))
        denoised = scheduler.precondition_outputs(raw, target, sigma)
        torch.testing.assert_close(denoised, CLEAN, rtol=1e-3, atol=1e-3)
        assert schedule.preconditioning is not None
        clean, noise = schedule.preconditioning.clean_and_noise(noised, target, step)
        torch.testing.assert_close(clean, CLEAN, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(noise, START, rtol=1e-2, atol=1e-2)


SHIFTED = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
#: Class and options; the tolerance is larger where the scheduler cuts its timesteps to integers.
FLOW_CASES: list[tuple[str, dict[str, Any], float]] = [
    ("FlowMatchEulerDiscreteScheduler", {}, 1e-4),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1e-4),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}, 1e-4),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, 1e-4),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, 1e-4),
    ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}, 1e-4),
    ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}, 1e-4),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 1e-4),
    ("FlowMatchLCMScheduler", {"shift": 3.0}, 1e-4),
    ("DPMSolverMultistepScheduler", SHIFTED, 2e-2),
    ("DPMSolverSinglestepScheduler", SHIFTED, 2e-2),
    ("DEISMultistepScheduler", {**SHIFTED, "flow_shift": 1.0}, 2e-2),
    ("UniPCMultistepScheduler", SHIFTED, 2e-2),
    ("UniPCMultistepScheduler", {**SHIFTED, "use_karras_sigmas": True}, 2e-2),
    ("SASolverScheduler", SHIFTED, 2e-2),
]


@pytest.mark.parametrize(("name", "options", "tolerance"), FLOW_CASES)
def test_a_flow_pipeline_meets_the_levels_of_its_scheduler(
    name: str, options: dict[str, Any], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shifted, Karras and flow sigmas all feed the network `step / steps` of noise at a step."""
    scheduler = deterministic(name, options)
    schedule = schedule_of(scheduler)
    assert schedule.prediction == FLOW
    oracle = Oracle(schedule, CLEAN)
    network, _, constants = sd3()
    found = sample_sd3(ask(oracle, network, monkeypatch), scheduler, constants)
    oracle.check(found, name, tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_is_asked_as_its_pipeline_asks_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of the family's pipeline, our prediction is the answer that it got."""
    network, scheduler, constants = FAMILIES[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    asked: list[tuple[Tensor, float, Tensor]] = []
    forward: Callable[..., Any] = network.forward

    def record(*given: Tensor, **named: Any) -> Any:
        answer = forward(*given, **named)
        noised = given[0] if given else named["hidden_states"]
        at = given[1] if len(given) > 1 else named["timestep"]
        asked.append((noised, float(at.flatten()[0]), answer[0]))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", record)
        PIPELINES[name](network, scheduler, constants)
    generator = Generator(tiny_autoencoder(), network, schedule_of(scheduler), constants)
    assert len(asked) >= 10
    for noised, at, answer in asked:
        packed = name == "flux1"
        # A sampler may stop between two steps of training, which the network is told as well.
        step: Any = at * 1000 if packed else at
        whole, expected = (unpack(one, 8, 8) if packed else one for one in (noised, answer))
        with torch.inference_mode():
            found = generator.predict(whole, step)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_every_scheduler_of_diffusers_is_read_or_refused_by_name() -> None:
    """No class is left out; none that is refused gets a schedule of another's."""
    exported = {
        name
        for names in diffusers.schedulers._import_structure.values()
        for name in names
        if name.endswith("Scheduler")
    }
    # diffusers leaves those out whose own dependency is not installed.
    exported |= {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}
    read = {*VARIANCE_PRESERVING, *FLOW_MATCHING, *PRECONDITIONED}
    assert exported == read | REFUSED_SCHEDULERS.keys()
    assert not read & REFUSED_SCHEDULERS.keys()
    assert {name for name, _, _ in VP_CASES} == set(VARIANCE_PRESERVING)
    assert {name for name, _, _ in FLOW_CASES} >= set(FLOW_MATCHING)
    for name, reason in REFUSED_SCHEDULERS.items():
        with pytest.raises(SettingsError) as raised:
            noise_schedule_from_scheduler({"_class_name": name, "beta_start": 0.0001})
        assert f"{name} is not supported: {reason}" in str(raised.value)
    with pytest.raises(SettingsError, match="OwnScheduler is not supported: known are DDIMPar"):
        noise_schedule_from_scheduler({"_class_name": "OwnScheduler"})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "prediction type 'epsilon'"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "no flow sigmas"),
        ("EulerDiscreteScheduler", SHIFTED, "EulerDiscreteScheduler with flow_prediction but no"),
        (
            "DPMSolverMultistepScheduler",
            {**SHIFTED, "use_karras_sigmas": True},
            "use_flow_sigmas and use_karras_sigmas",
        ),
        (
            "UniPCMultistepScheduler",
            {**SHIFTED, "use_beta_sigmas": True},
            "use_flow_sigmas and use_beta_sigmas",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        (
            "EulerDiscreteScheduler",
            {"prediction_type": VELOCITY, "timestep_type": "continuous"},
            "timestep_type continuous",
        ),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "'sample' is not supported"),
        ("EDMEulerScheduler", {"sigma_schedule": "cosine"}, "EDMEulerScheduler cannot be built"),
        ("DDIMScheduler", {"beta_schedule": "cosine"}, "DDIMScheduler cannot be built"),
    ],
)
def test_options_that_mix_processes_are_refused(
    name: str, options: dict[str, Any], said: str
) -> None:
    """An option that changes what the network is fed is never read as the plain process."""
    with pytest.raises(SettingsError, match=said):
        noise_schedule_from_scheduler({"_class_name": name, **options})


def test_each_class_has_its_own_defaults() -> None:
    """Where a configuration leaves betas out, the class's own are taken, not DDPM's."""
    heun = noise_schedule_from_scheduler({"_class_name": "HeunDiscreteScheduler"})
    ddpm = noise_schedule_from_scheduler({"_class_name": "DDPMScheduler"})
    assert heun.alphas_cumprod is not None
    assert ddpm.alphas_cumprod is not None
    theirs = diffusers.HeunDiscreteScheduler().alphas_cumprod
    torch.testing.assert_close(heun.alphas_cumprod, theirs)
    assert not torch.allclose(ddpm.alphas_cumprod, theirs)
