"""Names of TRL, PEFT and bitsandbytes that these do not promise, and remedies for what they do."""
