"""Looking at data: what the doctor checks and what the preview shows."""
