"""What the trainers need of TRL, PEFT and bitsandbytes beyond what these promise."""
