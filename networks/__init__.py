"""The other networks, and what is done to any network: stages, recomputing, checks, folding."""
