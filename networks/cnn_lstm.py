"""A 2D ConvNet on each frame, and an LSTM over the sequence."""

from torch import nn

from networks.backbone import build_backbone, features_of_frames


class CnnLstm(nn.Module):
    """A 2D ConvNet on each frame, an LSTM over the sequence. (Donahue et al., arXiv 1411.4389)

    Every step of the LSTM gives logits; the clip's are their mean.
    """

    def __init__(self, num_classes, backbone, lstm_units, dropout):
        super().__init__()
        self.backbone, num_features = build_backbone(backbone)
        self.lstm = nn.LSTM(num_features, lstm_units, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(lstm_units, num_classes)

    def forward(self, clips):
        states, _ = self.lstm(features_of_frames(self.backbone, clips))  # [N, T, units]
        return self.classifier(self.dropout(states)).mean(dim=1)
