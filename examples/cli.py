"""A LightningCLI whose penalties stand in its config.

python examples/cli.py fit --config examples/config.yaml
"""

from digits import Classifier, Digits
from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI(Classifier, Digits, save_config_callback=None)
