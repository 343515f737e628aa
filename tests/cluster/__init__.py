"""Tests on a real control plane: a package, because the control plane is a fixture of its scope."""
