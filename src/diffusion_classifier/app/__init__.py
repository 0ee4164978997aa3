"""The web page of `diffusion-classifier demo`: classify images, score captions, browse runs."""
