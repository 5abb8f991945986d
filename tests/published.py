"""The published network, written out by hand with its own names: the reference for ours."""

from torch import nn


def conv_layer(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, (2, 3, 3)),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(),
        nn.Conv3d(channels_out, channels_out, (2, 3, 3), padding=1),
        nn.BatchNorm3d(channels_out),
        nn.LeakyReLU(),
        nn.MaxPool3d(2),
    )


class PublishedNetwork(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv_layer1 = conv_layer(3, 32)
        self.conv_layer2 = conv_layer(32, 64)
        self.conv_layer3 = conv_layer(64, 124)
        self.conv_layer4 = conv_layer(124, 256)
        self.conv_layer5 = nn.Conv3d(256, 512, (1, 3, 3))
        self.fc5, self.batch0 = nn.Linear(512, 512), nn.BatchNorm1d(512)
        self.fc6, self.batch1 = nn.Linear(512, 256), nn.BatchNorm1d(256)
        self.fc7 = nn.Linear(256, num_classes)
        self.activation, self.dropout = nn.LeakyReLU(), nn.Dropout(0.15)

    def forward(self, clips):
        features = self.conv_layer4(self.conv_layer3(self.conv_layer2(self.conv_layer1(clips))))
        features = self.conv_layer5(features).flatten(1)
        features = self.dropout(self.batch0(self.activation(self.fc5(features))))
        features = self.dropout(self.batch1(self.activation(self.fc6(features))))
        return self.fc7(features)
