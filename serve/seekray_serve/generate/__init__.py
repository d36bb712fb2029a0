"""What generative models answer: texts by OpenAI's interface, rows and images by our own."""
