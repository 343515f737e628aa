"""`fluxpool verify`: how image files are marked, and whether the marks hold."""
