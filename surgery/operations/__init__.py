"""Acting: a policy becomes a plan, a plan becomes adapters, and fold or undo takes them away."""
