"""What serving in integers costs: measured, bounded, and given more bits where it costs too much."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model import load_checkpoint
from model.checkpoint.files import CONFIG, SELFTEST, Checkpoint, dump_json, read_checkpoint, read_verified, write_checkpoint
from model.checkpoint.manifest import read_manifest
from model.checkpoint.signature import new_private_key, public_key_text
from model.config import GPTConfig
from model.draft import FILE as DRAFT
from model.exact.digests import answers_of, known_answers
from model.exact.network import ExactModel
from model.gpt import GPT
from tests.model.random_models import calm_model
from tests.training.processes import Run
from training.__main__ import main
from training.evaluate import full_loss
from training.exact_loss import MOST_COST, choose_arithmetic, exact_loss, exact_model

SHIPPED = Path(__file__).parents[2] / "model" / "pretrained"
CONFIG_OF_TESTS = GPTConfig(vocab_size=12, block_size=16, n_layer=2, n_head=3, n_embd=32)
IDS = torch.tensor([i * i * 7 % 12 for i in range(150)])


def calm_gpt(config: GPTConfig = CONFIG_OF_TESTS) -> GPT:
    model = GPT(config).eval()
    model.load_state_dict({name: torch.from_numpy(w) for name, w in calm_model(config, scale=0.1).tensors.items()})
    return model


def with_an_outlier(model: GPT) -> GPT:
    """A feature 300 times as large as the others that no weight looks at: nothing to floats, everything to 8 bits."""
    state = model.state_dict()
    for name, w in state.items():
        if name.endswith(("ln_1.weight", "ln_2.weight")):
            w[0] = 300
        if name.endswith(("qkv.weight", "up.weight")):
            w[:, 0] = 0
    return model


def test_it_is_the_mean_over_consecutive_windows() -> None:
    model = exact_model(calm_gpt())
    losses = []
    for start in range(0, 149, 16):
        window = IDS[start : start + 17].tolist()
        x = model.text_logits(window[:-1]).astype(np.float64)
        losses += [float(np.log(np.exp(row).sum()) - row[target]) for row, target in zip(x, window[1:], strict=True)]
    assert len(losses) == 149
    assert exact_loss(model, IDS) == pytest.approx(sum(losses) / 149, abs=1e-9)


def test_a_calm_model_has_activations_of_8_bits() -> None:
    model = calm_gpt()
    arithmetic, cost = choose_arithmetic(model, IDS)
    assert arithmetic == "w8a8"
    assert cost == exact_loss(exact_model(model, "w8a8"), IDS) - full_loss(model, IDS)
    assert cost <= MOST_COST


def test_outliers_get_16_bits() -> None:
    model = with_an_outlier(calm_gpt())
    expected = full_loss(model, IDS)
    narrow_cost = exact_loss(exact_model(model, "w8a8"), IDS) - expected
    assert narrow_cost > MOST_COST
    arithmetic, cost = choose_arithmetic(model, IDS)
    assert arithmetic == "w8a16"
    assert abs(cost) < narrow_cost / 10


DATA = os.environ.get("FOLIO_DATA")
"""Read before a fixture takes it away."""


@pytest.mark.skipif(DATA is None, reason="FOLIO_DATA names no copy of Tiny Shakespeare")
@pytest.mark.parametrize("num_tokens", [4096, pytest.param(0, marks=pytest.mark.slow)])
def test_the_shipped_checkpoint_loses_less_than_a_thousandth(num_tokens: int) -> None:
    assert DATA is not None
    text = Path(DATA).read_text(encoding="utf-8")
    checkpoint = load_checkpoint(SHIPPED)
    ids = torch.tensor(checkpoint.tokenizer.encode(text[int(0.9 * len(text)) :]))
    ids = ids[: num_tokens + 1] if num_tokens else ids
    assert abs(exact_loss(exact_model(checkpoint.model), ids) - full_loss(checkpoint.model, ids)) < 0.001


def test_eval_prints_it(uninterrupted: Run, capsys: pytest.CaptureFixture[str]) -> None:
    best, text = uninterrupted.path / "best", str(uninterrupted.text)
    assert main(["eval", str(best), "--data", text]) == 0
    float_result = json.loads(capsys.readouterr().out)
    assert main(["eval", str(best), "--data", text, "--exact"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["arithmetic"] == "w8a8"
    assert result["exact_loss"] == pytest.approx(float_result["val_loss"], abs=0.002)
    assert result["exact_loss"] != float_result["val_loss"]
    assert result["tokens"] == float_result["tokens"]


# upgrade


@pytest.fixture
def old(uninterrupted: Run, tmp_path: Path) -> Checkpoint:
    """A checkpoint as it was before there were digests."""
    best = read_checkpoint(uninterrupted.path / "best")
    cases = [
        {"prompt": [1, 2, 3], "logits": [0.0] * best.config.vocab_size},
        {"prompt": [*range(7)], "logits": [0.0] * best.config.vocab_size},
    ]
    files = read_verified(read_manifest(best.path)) | {SELFTEST: dump_json({"tolerance": {}, "cases": cases})}
    write_checkpoint(tmp_path / "old", files, {"start": "\n", "val_loss": 2.5})
    return read_checkpoint(tmp_path / "old")


def test_upgrade_writes_digests_into_a_copy(old: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    (old.path / DRAFT).write_bytes(b"counts")
    assert main(["upgrade", str(old.path), str(out)]) == 0
    new = read_checkpoint(out)
    assert capsys.readouterr().out == f"{out}: {new.id}\n"
    assert new.id != old.id == read_checkpoint(old.path).id
    assert new.manifest["upgraded_from"] == old.id
    assert new.manifest["val_loss"] == 2.5
    assert (out / "model.safetensors").read_bytes() == (old.path / "model.safetensors").read_bytes()
    assert (out / DRAFT).read_bytes() == b"counts"
    assert new.config == old.config
    assert known_answers(new.selftest, new.config) == answers_of(ExactModel(new.config, new.tensors), [*range(7)])


def test_what_is_upgraded_stays_so(old: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "new")
    assert main(["upgrade", str(old.path), out]) == 0
    assert main(["upgrade", str(old.path), out]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["upgrade", out, str(tmp_path / "newer")]) == 2
    assert "has its digests already" in capsys.readouterr().err
    assert not (tmp_path / "newer").exists()


def test_upgrade_signs_on_request(old: Checkpoint, tmp_path: Path) -> None:
    key = new_private_key(tmp_path / "key.pem")
    assert main(["upgrade", str(old.path), str(tmp_path / "new"), "--key", str(tmp_path / "key.pem")]) == 0
    assert read_checkpoint(tmp_path / "new", [public_key_text(key)]).manifest["upgraded_from"] == old.id


def test_an_imported_checkpoint_of_before_gets_16_bits_unless_a_text_says_otherwise(
    old: Checkpoint, tmp_path: Path, uninterrupted: Run
) -> None:
    write_checkpoint(tmp_path / "imported", read_verified(read_manifest(old.path)), {"imported": "gpt2", "val_loss": None})
    assert main(["upgrade", str(tmp_path / "imported"), str(tmp_path / "wide")]) == 0
    wide = read_checkpoint(tmp_path / "wide")
    assert wide.config.arithmetic == "w8a16"
    assert json.loads((tmp_path / "wide" / CONFIG).read_text())["arithmetic"] == "w8a16"
    assert known_answers(wide.selftest, wide.config) == answers_of(ExactModel(wide.config, wide.tensors), [*range(7)])
    assert main(["upgrade", str(tmp_path / "imported"), str(tmp_path / "measured"), "--data", str(uninterrupted.text)]) == 0
    assert read_checkpoint(tmp_path / "measured").config.arithmetic == "w8a8"
