"""What a run moves and keeps: state, folder, checkpoints, optimizer, mixing, averaged weights."""
