"""How others talk to a model: a server with OpenAI's interface on the engine."""
