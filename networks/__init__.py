"""The other networks, and tools for any network: stages, recomputing, checks, folding."""
