"""From files to arrays: annotations, frames, videos, sampling, transforms, flow, batches."""
