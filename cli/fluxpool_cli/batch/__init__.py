"""`fluxpool batch`: thousands of prompts from a file, as one group of tasks."""
