"""Flask-Pika beside its peers: each in a process of its own, in an environment of its own."""
