"""Twenty prompts of different kinds, written for these tests."""

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a",
    "def fibonacci(n):\n    ",
    "The three primary colours are",
    "To make a good cup of tea, first",
    "In 1969, the first people to walk on the Moon",
    "SELECT name, count(*) FROM orders WHERE",
    "Dear Sir or Madam,\n\nI am writing to",
    "The derivative of x squared with respect to x is",
    "Q: Why is the sky blue?\nA:",
    "import numpy as np\n\nx = np.linspace(0, 1, 100)\n",
    "La ville de Paris est connue pour",
    "List of fruits:\n- apple\n- banana\n-",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "Water boils at 100 degrees Celsius because",
    '{"name": "Ada", "born": 1815, "field":',
    "A haiku about autumn:\n",
    "The main difference between a list and a tuple in Python is",
    "When the train finally arrived, Maria",
    "1, 1, 2, 3, 5, 8, 13, 21,",
]
