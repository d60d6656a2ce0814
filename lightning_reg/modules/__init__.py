"""LightningModules that regularize themselves."""
