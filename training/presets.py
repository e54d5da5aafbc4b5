"""Named configurations. A flag replaces a preset's value: ``python -m training --preset baby --max-iters 1000``."""

from __future__ import annotations

from training.config import TrainConfig

PRESETS: dict[str, TrainConfig] = {
    # The described system: 4,023,873 parameters on Tiny Shakespeare.
    "default": TrainConfig(),
    # The original script's hyperparameters, with the right arithmetic: what comparisons run. 3,991,105 parameters.
    "original": TrainConfig(
        block_size=128,
        max_iters=5501,
        learning_rate=3e-4,
        schedule="constant",
        warmup_iters=0,
        weight_decay=0.01,
        beta2=0.999,
        grad_clip=0.0,
        eval_interval=500,
        save_interval=500,
    ),
    # nanoGPT's config/train_shakespeare_char.py: 10.7M parameters.
    "baby": TrainConfig(n_layer=6, n_head=6, n_embd=384, min_lr=1e-4),
    # The described architecture with the tricks of docs/training.md, for the lowest loss at 4,023,873 parameters: 1.4479, the
    # checkpoint that ships. Half the batch, so that two CPU cores need an hour and a half.
    "best": TrainConfig(
        batch_size=32,
        max_iters=2400,
        optimizer="muon",
        schedule="wsd",
        learning_rate=2e-3,
        dropout_descent=True,
        calibration_fraction=0.01,
        eval_interval=400,
    ),
    # nanoGPT's shape, the same tricks and few steps: for its 1.4697 in the least time. Not yet run at this size.
    "fast": TrainConfig(
        n_layer=6, n_head=6, n_embd=384, max_iters=1200, optimizer="muon", schedule="wsd", ema=0.98, eval_interval=300, save_interval=600
    ),
    # A first model in minutes on two CPU cores: small, a short context, no dropout, the same tricks.
    "quick": TrainConfig(
        n_layer=4,
        n_head=4,
        n_embd=160,
        block_size=128,
        dropout=0.0,
        batch_size=32,
        max_iters=900,
        optimizer="muon",
        schedule="wsd",
        learning_rate=3e-3,
        warmup_iters=50,
        eval_interval=300,
        save_interval=100,
        calibration_fraction=0.01,
    ),
    # On from a checkpoint (--init-from): some 120,000 tokens, which is seconds for the shipped model and 20 kB of text.
    "finetune": TrainConfig(
        batch_size=8,
        max_iters=60,
        learning_rate=1e-3,
        min_lr=0.0,
        warmup_iters=5,
        eval_interval=30,
        save_interval=60,
        log_interval=5,
        sample_chars=200,
    ),
    "smoke": TrainConfig(
        n_layer=2,
        n_head=3,
        n_embd=64,
        block_size=64,
        dropout=0.0,
        batch_size=32,
        max_iters=600,
        learning_rate=3e-3,
        warmup_iters=20,
        eval_interval=100,
        save_interval=50,
        sample_chars=200,
    ),
}
