"""The other networks, and what is done to any network: its table of stages, recomputed
activations, checks.
"""
