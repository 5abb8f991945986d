"""From files to arrays: annotations, frames, videos, sampling, transforms, optical flow,
batches.
"""
