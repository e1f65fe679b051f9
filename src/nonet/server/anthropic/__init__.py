"""The Anthropic dialect: Messages as Anthropic's clients send them, and answers in the shapes they expect."""
