"""The schedulers as the large models publish them."""

from __future__ import annotations

from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PIXEL_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
STABLE_DIFFUSION = {**LATENT_BETAS, "steps_offset": 1}


def sd15_scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.5: a multistep method, one network call more than it has steps."""
    return PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **STABLE_DIFFUSION)


def sd21_scheduler() -> DDIMScheduler:
    """Stable Diffusion 2.1 with the schedule carried on to zero terminal SNR."""
    return DDIMScheduler(
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **STABLE_DIFFUSION,
    )


def sd21_v_scheduler() -> DDIMScheduler:
    """Stable Diffusion 2.1 as published for 768 pixels."""
    return DDIMScheduler(
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        **STABLE_DIFFUSION,
    )


def sdxl_scheduler(prediction_type: str = "epsilon") -> EulerDiscreteScheduler:
    """Stable Diffusion XL."""
    return EulerDiscreteScheduler(
        timestep_spacing="leading", prediction_type=prediction_type, **STABLE_DIFFUSION
    )


def zero_snr_euler_scheduler() -> EulerDiscreteScheduler:
    """Models retrained to predict v at zero terminal SNR, as far as Euler's steps can have it."""
    return EulerDiscreteScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **STABLE_DIFFUSION,
    )


def ddpm_v_scheduler() -> DDPMScheduler:
    """DDPM's schedule with v in the place of eps."""
    return DDPMScheduler(prediction_type="v_prediction", **PIXEL_BETAS)


def pixart_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt-alpha and PixArt-sigma."""
    return DPMSolverMultistepScheduler(**PIXEL_BETAS)


def dit_scheduler() -> DDIMScheduler:
    """DiT-XL/2."""
    return DDIMScheduler(clip_sample=False, **PIXEL_BETAS)


def cogvideox_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX-2b."""
    return CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        **LATENT_BETAS,
    )


def shifted_flow(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3 and Z-Image, both with shift 3."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev: the shift grows with the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def qwen_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Qwen-Image: a dynamic shift, then stretched to end at 0.02."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )


def ltx_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """LTX-Video: a dynamic shift, then stretched to end at 0.1."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        shift_terminal=0.1,
    )


def sana_scheduler(shift: float = 3.0) -> DPMSolverMultistepScheduler:
    """Sana: DPM-Solver++ on the flow's sigmas."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **PIXEL_BETAS
    )


def wan_scheduler(shift: float) -> UniPCMultistepScheduler:
    """Wan: UniPC on the flow's sigmas; shift 3 at 480p, 5 at 720p."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **PIXEL_BETAS
    )
