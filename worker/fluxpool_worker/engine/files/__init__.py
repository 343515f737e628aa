"""Image files from pixels, for what the engine generates. Imports no torch: it runs beside the next generation."""
