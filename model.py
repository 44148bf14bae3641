"""A convolutional network with fewer than 20,000 parameters for 28x28 greyscale digits.

python model.py        prints the layer table
"""

import torch
from torch import nn

SIDE = 28
MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels, scaled to 0..1


def pooling(antialiased):
    """Modules that halve height and width: 2x2 max pooling, or if `antialiased` a 3x3 maximum and a 2x2 average.

    The antialiased version changes less when a digit moves by one pixel (Making Convolutional Networks
    Shift-Invariant Again, arXiv:1904.11486).
    """
    if antialiased:
        return [nn.MaxPool2d(3, stride=1, padding=1), nn.AvgPool2d(2)]
    return [nn.MaxPool2d(2)]


class ConvBlock(nn.Sequential):
    """Convolution, optional pooling modules, BatchNorm, SiLU.

    Pooling precedes BatchNorm and SiLU, which then see a quarter of the values (tuomaso/train_mnist_fast). A separable
    convolution filters each channel separately, then mixes channels with a 1x1 convolution, with a fraction of the
    parameters (Xception, arXiv:1610.02357).
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, padding=0, pool=(), separable=False):
        if separable:
            convolutions = [
                nn.Conv2d(in_channels, in_channels, kernel_size, padding=padding, groups=in_channels, bias=False),
                nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
            ]
        else:
            convolutions = [nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)]
        super().__init__(*convolutions, *pool, nn.BatchNorm2d(out_channels), nn.SiLU())


class Net(nn.Module):
    """Five convolution blocks, global average pooling, dropout and a linear classifier: images in, logits out.

    Args:
        widths: output channels of the five blocks.
        dropout: probability of zeroing a pooled feature in training.
        separable: whether the blocks after the first use separable convolutions.
        antialias: which of the two poolings are antialiased, "none", "second" or "both".
        margin: pixels to crop from each side of the images; MNIST's digits lie in the middle.

    Input: images (N, 1, 28, 28), whole or already cropped by `margin`; float in 0..1 or uint8 in 0..255.
    Output: float logits (N, 10), not probabilities.
    """

    def __init__(self, widths=(16, 16, 32, 24, 24), dropout=0.01, separable=False, antialias="second", margin=2):
        super().__init__()
        c1, c2, c3, c4, c5 = widths
        first, second = pooling(antialias == "both"), pooling(antialias in ("second", "both"))
        self.side = SIDE - 2 * margin  # of the cropped images
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))
        self.blocks = nn.Sequential(  # shapes with the default margin, from (N, 1, 24, 24)
            ConvBlock(1, c1, kernel_size=5, pool=first),  # (N, c1, 10, 10)
            ConvBlock(c1, c2, padding=1, separable=separable),  # (N, c2, 10, 10)
            ConvBlock(c2, c3, pool=second, separable=separable),  # (N, c3, 4, 4)
            ConvBlock(c3, c4, padding=1, separable=separable),  # (N, c4, 4, 4)
            ConvBlock(c4, c5, padding=1, separable=separable),  # (N, c5, 4, 4)
        )
        self.gap = nn.AdaptiveAvgPool2d(1)  # (N, c5, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(c5, 10)

    def forward(self, images):
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        elif not images.is_floating_point():
            raise TypeError(f"images: found {images.dtype}, expected torch.uint8, or floats in 0..1")
        margin = (images.shape[-1] - self.side) // 2  # 0 if they are cropped already
        images = images[:, :, margin : margin + self.side, margin : margin + self.side]
        features = self.gap(self.blocks((images - self.mean) / self.std)).flatten(1)  # (N, c5)
        return self.classifier(self.dropout(features))  # (N, 10)


def count_parameters(model):
    """Number of all parameters of `model`, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    from torchsummary import summary

    summary(Net(), (1, SIDE, SIDE), device="cpu")
