"""The OpenAI dialect: request schemas, and the endpoints that answer in its shapes."""
