"""From files to arrays: annotations, clips, frames, videos, sampling, transforms, flow, batches."""
