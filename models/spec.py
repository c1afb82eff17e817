"""The specification from which a network is built.

A factory gets this and nothing else, so that it reads neither the options nor the data set.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class ModelSpec:
    """The image shape, the number of classes, and the layer options of a network.

    Attributes:
        shape: (channels, height, width) of an image.
        classes: number of classes.
        width: factor of every hidden width.
        bias: whether convolutions and linear layers have a bias.
        batch_norm: a key of `models.layers.BATCH_NORMS`.
        hidden_size: units of each hidden layer of FC.
    """

    shape: tuple[int, int, int]
    classes: int
    width: float = 1.0
    bias: bool = False
    batch_norm: str = "NonAffineBatchNorm"
    hidden_size: int = 500

    @property
    def channels(self) -> int:
        """The channels of an image."""
        return self.shape[0]

    def scaled(self, channels: int) -> int:
        """Multiply a hidden width by `width`; the result is at least 1."""
        return max(1, round(channels * self.width))

    def check_poolings(self, count: int) -> None:
        """Refuse images too small for `count` poolings by 2.

        Raises:
            UserError: a side of the images is below 2^count pixels.
        """
        _, height, width = self.shape
        if min(height, width) < 2**count:
            poolings = "1 pooling" if count == 1 else f"{count} poolings"
            raise UserError(
                f"images of {width}×{height} are too small for {poolings} by 2: "
                f"{2**count}×{2**count} is the smallest size"
            )
