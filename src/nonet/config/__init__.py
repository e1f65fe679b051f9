"""What the user asked for, and what it became: options, their sources, and every automatic choice with its reason."""
