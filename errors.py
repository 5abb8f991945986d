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
