"""The providers: what they are sent, what they answer, and the one place that does HTTP."""
