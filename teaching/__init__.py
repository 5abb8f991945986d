"""The page on which readers teach a network their own gestures: record, train, try."""
