"""Where what a model wrote is run: the sandbox, what runs inside it, and processes of verifiers."""
