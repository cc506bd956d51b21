"""Parameter-efficient fine-tuning: one method, one file; attach.py holds what they share."""
