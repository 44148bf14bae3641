"""A convolutional network with fewer than 20,000 parameters for 28x28 grey digits.

python model.py        prints the layer table
"""

import torch
from torch import nn


class ConvBlock(nn.Sequential):
    """3x3 (or larger) convolution, optional 2x2 max pooling, BatchNorm, ReLU, Dropout.

    Pooling comes before BatchNorm and ReLU, which then see a quarter of the values
    (tuomaso/train_mnist_fast); the result is the same max, normalised with other statistics.
    """

    def __init__(self, in_channels, out_channels, *, kernel_size=3, padding=0, pool=False, dropout=0.0):
        layers = [nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)]
        if pool:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)


class Net(nn.Module):
    """Five convolution blocks, global average pooling, a linear classifier.

    Args:
        widths: output channels of the five blocks.
        dropout: probability with which each block zeroes a value in training.

    Shapes: float images (N, 1, 28, 28) in, float logits (N, 10) out.
    """

    def __init__(self, widths=(16, 16, 24, 24, 24), dropout=0.02):
        super().__init__()
        c1, c2, c3, c4, c5 = widths
        self.blocks = nn.Sequential(  # (N, 1, 28, 28)
            ConvBlock(1, c1, kernel_size=5, padding=2, pool=True, dropout=dropout),  # (N, c1, 14, 14)
            ConvBlock(c1, c2, dropout=dropout),  # (N, c2, 12, 12)
            ConvBlock(c2, c3, padding=1, pool=True, dropout=dropout),  # (N, c3, 6, 6)
            ConvBlock(c3, c4, padding=1, dropout=dropout),  # (N, c4, 6, 6)
            ConvBlock(c4, c5, dropout=dropout),  # (N, c5, 4, 4)
        )
        self.gap = nn.AdaptiveAvgPool2d(1)  # (N, c5, 1, 1)
        # After global pooling a Linear and a 1x1 convolution are the same map; Linear says so by its name.
        self.classifier = nn.Linear(c5, 10)

    def forward(self, images):
        features = self.gap(self.blocks(images)).flatten(1)  # (N, c5)
        return self.classifier(features)  # (N, 10)


def count_parameters(model):
    """Number of all parameters of `model`, frozen ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    from torchsummary import summary

    torch.manual_seed(0)
    summary(Net(), (1, 28, 28), device="cpu")
