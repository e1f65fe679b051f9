"""Plain torch: the executable specification of every operation."""
