"""Models without torch: the same files, and a start that takes a tenth of the time.

Loading torch takes seconds, as long as everything else that compressing a small picture does. So
an architecture may state a second form of its networks, in numpy alone, for pictures of one tile:
the entropy model with the same exact arithmetic, hence the same words and the same decoded
latents to the last bit, and transforms in float32, whose pixels may differ by one step.
"""

from __future__ import annotations

from pipeline.codec.light.codec import LightModel, light_model, model_for

__all__ = ["LightModel", "light_model", "model_for"]
