"""The one exception for mistakes that the user can put right."""


class UserError(ValueError):
    """A mistake in the input: a config key, a file, a flag, a checkpoint.

    Its text names the key or the path and the remedy. The commands print it on stderr, without a
    traceback, and exit with status 2.
    """


def first_few(names, limit=10):
    """`a, b, c and 12 more`: the first `limit` of `names`, and how many are left."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def message_for_user(error: Exception) -> str | None:
    """What to tell the user of an exception that is theirs to put right; None if it is a bug."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.filename:
        reason = "see that the disk is not full, and that you may write there"
        return f"{error.filename}: cannot be written or read ({error.strerror}); {reason}"
    # PyTorch has classes of its own for these only in part.
    if "DataLoader worker" in text:
        return f"{text.splitlines()[0]}; if memory is short, lower num_workers or batch_size"
    if isinstance(error, MemoryError) or "out of memory" in text or "tried to allocate" in text:
        return "out of memory; lower batch_size, nclips or the clips' size (clip_size, crop_size)"
    return None
