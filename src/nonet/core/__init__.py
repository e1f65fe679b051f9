"""The nouns that every other package may use; standard library and msgspec only."""
