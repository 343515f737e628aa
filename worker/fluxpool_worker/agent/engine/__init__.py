"""The agent's side of the engine process."""
