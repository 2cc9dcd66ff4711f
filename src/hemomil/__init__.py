"""hemomil finds the few cells that explain a diagnosis."""
