"""Models without torch: they make the same files, and start in a tenth of the time.

Loading torch takes seconds, as long as all other work on a small picture. So an architecture may
define a second form of its networks, in numpy alone, for pictures of one tile. Its entropy model
has the same exact arithmetic, and so the same words and the same decoded latents to the last bit.
Its transforms compute in float32; their pixels may differ by one step.
"""

from __future__ import annotations

from pipeline.codec.light.codec import LightModel, light_model, model_for

__all__ = ["LightModel", "light_model", "model_for"]
