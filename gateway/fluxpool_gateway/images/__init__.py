"""Images of tasks over HTTP, and their thumbnails."""
