"""The fault lab: a real app under load, what a deployment does to it, and books that must balance."""
