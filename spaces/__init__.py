"""What a trial may vary, and how to build what it chose."""
