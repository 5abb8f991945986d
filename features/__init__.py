"""Features of a frozen backbone: computed once, kept in files, and what training reads of them."""
