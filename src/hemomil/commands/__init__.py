"""The verbs: each command as a Python function of the same name; rooms meet here."""
