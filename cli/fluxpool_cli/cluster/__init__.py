"""Kubernetes, by the user's own kubectl; and what `kubectl fluxpool` shows of pools."""
