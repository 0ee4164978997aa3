"""Conversion of a network's output to a prediction of the noise ε.

With x_t = α·x + σ·ε:

    epsilon        y = ε
    v_prediction   y = α·ε - σ·x      (Salimans & Ho 2022)   for α² + σ² = 1:  ε = σ·x_t + α·y
    sample         y = x                                     ε = (x_t - α·y) / σ
    flow           y = ε - x          (rectified flow)       for α + σ = 1:  ε = x_t + α·y
    edm            y = σ·x - α·ε      (Karras et al. 2022)   for α² + σ² = 1:  ε = σ·x_t - α·y

"edm" is the output of a network with EDM's preconditioning, with x in units of σ_data: v_prediction with opposite sign.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow", "edm")


def to_noise(output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Return ε̂, float32, from the network's output.

    Args:
        output: The network's output, (B, *), any floating dtype.
        noisy: x_t, (B, *), float32.
        alpha: α_t, (B,), float32.
        sigma: σ_t, (B,), float32, above 0 if the prediction type is "sample".
        prediction_type: One of `PREDICTION_TYPES`.

    Raises:
        InputError: The prediction type is unknown.
    """
    output = output.float()
    shape = (-1, *[1] * (noisy.ndim - 1))
    alpha, sigma = alpha.view(shape), sigma.view(shape)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return sigma * noisy + alpha * output
    if prediction_type == "sample":
        return (noisy - alpha * output) / sigma
    if prediction_type == "flow":
        return noisy + alpha * output
    if prediction_type == "edm":
        return sigma * noisy - alpha * output
    raise InputError(f"prediction type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")


def target(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Return the training target of a network with this prediction type, (B, *); see `to_noise` for the arguments.

    Raises:
        InputError: The prediction type is unknown.
    """
    shape = (-1, *[1] * (x.ndim - 1))
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return alpha.view(shape) * noise - sigma.view(shape) * x
    if prediction_type == "sample":
        return x
    if prediction_type == "flow":
        return noise - x
    if prediction_type == "edm":
        return sigma.view(shape) * x - alpha.view(shape) * noise
    raise InputError(f"prediction type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split an output with learned variance (improved DDPM), (B, 2C, *), into prediction and variance, (B, C, *).

    Raises:
        InputError: The output has neither C nor 2C channels.
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        return output[:, :channels], output[:, channels:]
    raise InputError(
        f"the network returns {output.shape[1]} channels for latents of {channels}; {channels} or "
        f"{2 * channels} (with learned variance) were expected"
    )
