"""What a number is worth: metrics with patient-level intervals. No torch."""
