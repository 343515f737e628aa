"""Presets of the operator: named parameters of tasks; `auto` learns from feedback which one people prefer."""
