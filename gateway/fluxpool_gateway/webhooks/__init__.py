"""Webhooks: tells endpoints of tenants that their tasks and groups have ended, as Standard Webhooks has it."""
