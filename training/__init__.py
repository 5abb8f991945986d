"""The parts of a run: state, folder, checkpoints, optimizer, mixing, averaged weights."""
