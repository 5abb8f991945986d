"""From a checkpoint to scores and files, for evaluation, ensembles and prediction."""
