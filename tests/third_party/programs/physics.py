"""pina, with a Trainer class of its own: a supervised solver on a smooth function of two variables."""

import torch
from lightning.pytorch import seed_everything
from pina import Trainer
from pina.model import FeedForward
from pina.problem.zoo import SupervisedProblem
from pina.solver import SupervisedSolver


def train(callbacks=()):
    seed_everything(0, verbose=False)
    points = torch.rand(40, 2)
    problem = SupervisedProblem(points, points.sum(1, keepdim=True).sin())
    solver = SupervisedSolver(
        problem=problem,
        model=FeedForward(input_dimensions=2, output_dimensions=1, inner_size=16),
        use_lt=False,
    )
    trainer = Trainer(
        solver,
        max_epochs=5,
        accelerator="cpu",
        batch_size=10,
        train_size=0.8,
        val_size=0.2,
        test_size=0.0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.train()
    trainer.save_checkpoint("final.ckpt")
    return trainer, solver, solver(points)


if __name__ == "__main__":
    train()
