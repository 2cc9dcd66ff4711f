"""What a person sees: figures and the offline page."""
