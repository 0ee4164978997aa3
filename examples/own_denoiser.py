"""Custom denoiser: use your own network as a classifier."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_classifier import Denoiser, DiffusionClassifier
from diffusion_classifier.denoisers import Conditioning
from diffusion_classifier.diffusion import RectifiedFlow

NAMES = ("dark", "grey", "light")


class MyNetwork(torch.nn.Module):
    """Any network (x_t, t, class) → prediction. This one predicts that every pixel has the brightness of the class."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = torch.nn.Parameter(torch.tensor([-0.7, 0.0, 0.7]))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return the velocity ε - x, where x_t = (1 - t)·x + t·ε."""
        x = self.brightness[labels].view(-1, 1, 1, 1).to(x_t)
        t = t.view(-1, 1, 1, 1).clamp(min=1e-3).to(x_t)
        return (x_t - (1 - t) * x) / t - x


class MyDenoiser(Denoiser):
    """Network with its noise schedule and the encoding of images and classes."""

    family = "mine"
    conditions = ("labels",)
    class_names = NAMES

    def __init__(self, network: MyNetwork, image_size: int = 16) -> None:
        shape = (3, image_size, image_size)  # of a latent, which is the image itself here
        super().__init__({"network": network}, RectifiedFlow(1000), "flow", shape, image_size)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to latents. An autoencoder would return its scaled mean."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images."""
        return latents

    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Return one row per class. A text-to-image model would encode prompts."""
        return Conditioning(
            {"labels": torch.tensor([NAMES.index(str(c)) if isinstance(c, str) else c for c in classes])}
        )

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the network's output for B rows. The base class converts it to noise."""
        prediction: Tensor = self.network(noisy, t / self.schedule.num_timesteps, conditioning.tensors["labels"])
        return prediction


if __name__ == "__main__":
    classifier = DiffusionClassifier(MyDenoiser(MyNetwork()), batch_size=32)
    photo = torch.full((3, 16, 16), 0.85)  # nearly white, in [0, 1]
    for label, score in classifier.classify(photo)[0].scores.items():
        print(f"{label:6} {score:.3f}")
