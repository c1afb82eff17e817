"""What a family of networks needs to know to build one of its members."""

from __future__ import annotations

from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class ModelSpec:
    """The shape of the task and the options of the layers.

    Attributes:
        shape: (channels, height, width) of an image.
        classes: how many.
        width: factor of every hidden width.
        bias: whether convolutions and linear layers have one.
        batch_norm: a name of `models.layers.BATCH_NORMS`.
        hidden_size: units of FC's hidden layers.
    """

    shape: tuple[int, int, int]
    classes: int
    width: float = 1.0
    bias: bool = False
    batch_norm: str = "NonAffineBatchNorm"
    hidden_size: int = 500

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.shape[0]

    def scaled(self, channels: int) -> int:
        """A hidden width times `width`, at least 1."""
        return max(1, round(channels * self.width))

    def check_poolings(self, count: int) -> None:
        """Refuse images of which `count` poolings by 2 would leave nothing.

        Raises:
            UserError: they are smaller than 2^count pixels on a side.
        """
        _, height, width = self.shape
        if min(height, width) < 2**count:
            poolings = "1 pooling" if count == 1 else f"{count} poolings"
            raise UserError(
                f"images of {height}×{width} are too small for {poolings} by 2: "
                f"{2**count}×{2**count} is the smallest size"
            )
