"""OpenAI's Responses API: bodies, the items of a conversation, answers and their events, and what is stored of them."""
