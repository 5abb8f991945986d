"""What a run moves and keeps: its state, folder and checkpoints, the optimizer, mixing,
averages of weights.
"""
