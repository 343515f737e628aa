"""Real workers as processes, parts of the agent, and gates for their tasks."""
