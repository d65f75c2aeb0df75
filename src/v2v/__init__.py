"""MS-Vid2Vid-XL, text-guided video enhancement to 720p, as a compiled inference engine.

    import v2v

    v2v.enhance("in.mp4", "out.mp4", "a red fox")  # a file, with its sound and everything else

    enhancer = v2v.VideoToVideo.load("path/of/an/engine-set")
    for frame in enhancer(frames, "a red fox", seed=7):  # uint8 [H, W, 3] in, uint8 [H', W', 3] out; or uint16
        ...

    with v2v.ImageToVideo.load("path/of/another") as animator:  # a picture becomes a film
        frames = list(animator(picture, seed=7))

What this module names is the interface for other programs; it is imported when it is asked for. The rest of the package
may change from one version to the next.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2v.core.errors import V2VError
    from v2v.core.version import __version__
    from v2v.runtime.diffusion.image_to_video import Animation, ImageToVideo
    from v2v.runtime.diffusion.pipeline import VideoToVideo
    from v2v.runtime.diffusion.progress import Progress, Step
    from v2v.runtime.diffusion.settings import Settings
    from v2v.runtime.run import Cancelled
    from v2v.runtime.run import enhance_file as enhance

# Nothing that v2v uses reports to anyone. ONNX Runtime would write an identifier of the machine into the user's cache
# and ask the network where to send it. Each library looks when it is imported, so this comes before all of v2v.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    RAY_USAGE_STATS_ENABLED="0",
)

__all__ = [
    "Animation",
    "Cancelled",
    "ImageToVideo",
    "Progress",
    "Settings",
    "Step",
    "V2VError",
    "VideoToVideo",
    "__version__",
    "enhance",
]

_HOMES = {
    "Animation": "v2v.runtime.diffusion.image_to_video",
    "Cancelled": "v2v.runtime.run",
    "ImageToVideo": "v2v.runtime.diffusion.image_to_video",
    "Progress": "v2v.runtime.diffusion.progress",
    "Settings": "v2v.runtime.diffusion.settings",
    "Step": "v2v.runtime.diffusion.progress",
    "V2VError": "v2v.core.errors",
    "VideoToVideo": "v2v.runtime.diffusion.pipeline",
    "__version__": "v2v.core.version",
    "enhance": "v2v.runtime.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'v2v' has no attribute '{name}'; it has {', '.join(__all__)}")
    module = importlib.import_module(_HOMES[name])
    return getattr(module, "enhance_file" if name == "enhance" else name)


def __dir__() -> list[str]:
    return __all__
