"""The settings of a recipe that say how a stage is optimised: by what, and on crops of which size.

No torch here: a scheduler plans from a recipe alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from recipes.config.settings import Number, Positive, Rate, Section, Weight

Beta = Annotated[float, Field(ge=0, lt=1), Number]
Crop = Annotated[int, Field(gt=0, multiple_of=64)]

# Moments of Adam, and of Adam in Shampoo's eigenbasis, as their authors chose them.
ADAM_BETAS, SOAP_BETAS = (0.9, 0.999), (0.95, 0.95)
# Optimizers that need whole matrices: no flat parts of them, and no CUDA graph.
OF_MATRICES = frozenset({"soap", "muon"})


class Optimizer(Section):
    """The optimizer of the weights; Adam always steps the quantiles, with the same betas."""

    name: Literal["adam", "adamw", "soap", "muon"] = "adam"
    """`adamw`: Adam with decoupled weight decay; `soap`: Adam in the eigenbasis of Shampoo's
    preconditioner; `muon`: orthogonalised momentum for kernels, Adam for the rest. The last two
    need the extra `optimizers`."""
    betas: tuple[Beta, Beta] | None = None
    """Decay of the first and second moments; default: 0.9 and 0.999, for soap 0.95 and 0.95."""
    eps: Annotated[float, Field(gt=0, le=1), Number] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Weight = 0.0
    """Decoupled decay of the weights at each step, times lr; not for `adam`."""
    precondition_every: Positive = 10
    """Steps between two updates of soap's eigenbasis."""
    precondition_up_to: Positive = 2048
    """The longest side of a kernel that soap preconditions; it leaves longer sides unchanged."""
    momentum: Beta = 0.95
    """Muon's momentum."""
    kernel_lr: Rate | None = None
    """Muon's learning rate for kernels, on lr's schedule; default: lr."""

    @model_validator(mode="after")
    def _suits(self) -> Self:
        if self.name == "adam" and self.weight_decay:
            raise ValueError("adam has no weight_decay: name adamw, or leave it out")
        if self.name != "muon" and self.kernel_lr is not None:
            raise ValueError(f"{self.name} has no kernel_lr, which is muon's: leave it out")
        return self

    @property
    def decays(self) -> tuple[float, float]:
        """The betas that hold."""
        return self.betas or (SOAP_BETAS if self.name == "soap" else ADAM_BETAS)


def named(given: object) -> object:
    """Return an optimizer's settings where only its name is given."""
    return {"name": given} if isinstance(given, str) else given


class Shape(Section):
    """The crops of a step: their side, and their number in a global batch."""

    crop: Crop
    """Side of the square crops, in pixels."""
    batch: Positive | None = None
    """Pictures in a global batch; default: the stage's, or in a phase the phase's."""


class Phase(Shape):
    """Crops of another size from a step of a stage on; the optimizer's moments stay."""

    step: Positive
    """The first step with this size."""
    mix: list[Shape] = Field(default_factory=list)
    """Sizes and batches that steps use in turn with this one."""
