"""From a folder of clips to a validation split, settings with reasons, and a config."""
