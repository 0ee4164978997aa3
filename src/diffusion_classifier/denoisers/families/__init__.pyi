from .class_unet import ClassUNet as ClassUNet
from .dit import DiT as DiT
from .gaussian import Gaussian as Gaussian
from .late import LateConditionedPipeline as LateConditionedPipeline
from .registry import FAMILIES as FAMILIES
from .registry import PIPELINES as PIPELINES
from .registry import why_unsupported as why_unsupported
from .stable_diffusion import StableDiffusion as StableDiffusion
