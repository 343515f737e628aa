"""The engine: the only place that imports torch and diffusers, run in a child process of the agent."""
