"""One engine at work in each host: Lightning's Trainer, a plain loop, the Hugging Face Trainer."""
