"""The check of a data set before days are spent on it."""
