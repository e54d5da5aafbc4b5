"""The parts of training, each against its definition."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model.config import GPTConfig
from model.exact.generate import generate
from model.exact.network import ExactModel
from model.gpt import GPT
from model.params import SamplingParams
from model.tokenizer.char import CharTokenizer
from tests.training.processes import TINY, flags
from training.__main__ import main
from training.config import TrainConfig, TrainingError
from training.data import Text, load_text
from training.dataset import Dataset
from training.evaluate import full_loss
from training.flops import flops_per_token
from training.optim import MovingAverage, build_optimizers, kind_of, plateau_end, schedule, set_learning_rates
from training.presets import PRESETS
from training.progress import LossLog, Progress
from training.report import command_line, overfitting
from training.run_directory import Point, RunDirectory
from training.sampling import sample_text
from training.step import WARM_UP_STEPS, GraphedStep, TrainStep, compile_step
from training.trainer import Trainer

CPU = torch.device("cpu")
TOKENIZER = CharTokenizer.from_text("abcdefgh")


def dataset(block_size: int = 7) -> Dataset:
    torch.manual_seed(0)
    return Dataset(as_text(TOKENIZER.decode(torch.randint(0, 8, (1000,)).tolist())), TOKENIZER, block_size, CPU)


def as_text(text: str) -> Text:
    return Text.of(text)


# The text


def test_batches_are_a_function_of_seed_and_step() -> None:
    data, step = dataset(), torch.tensor(5)
    x, y = data.batch(3, step, 16)
    assert x.shape == y.shape == (16, 7)
    assert x.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(data.batch(3, step, 16)[0], x)
    assert not torch.equal(data.batch(4, step, 16)[0], x)
    assert not torch.equal(data.batch(3, step + 1, 16)[0], x)


def test_processes_share_one_batch_between_them() -> None:
    data, step = dataset(), torch.tensor(2)
    parts = [data.batch(1, step, 12, range(i, i + 4))[0] for i in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), data.batch(1, step, 12)[0])


def test_windows_reach_every_place_of_the_training_part_and_none_of_the_rest() -> None:
    data = dataset()
    data.train = torch.arange(900)
    x, y = data.batch(0, torch.tensor(0), 50_000)
    assert [int(x.min()), int(y.max())] == [0, 899]
    assert len(set(x[:, 0].tolist())) == 900 - 7


def test_the_split_is_nine_to_one_and_large_vocabularies_fit() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    data = Dataset(as_text(text), CharTokenizer.from_text(text), 8, CPU)
    assert (len(data.train), len(data.val)) == (900, 100)
    assert torch.cat([data.train, data.val]).tolist() == list(range(1000))


def test_texts_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\xe2\x80\xa8\xf0\x9f\x99\x82")
    monkeypatch.setenv("FOLIO_DATA", str(file))
    text = load_text(None)
    assert "".join(text.chunks()) == "a\nb\u2028\U0001f642"
    assert (text.name, text.paths, text.line_ends) == ("t.txt", (str(file),), ("\r\n",))
    assert "".join(load_text([str(file)], keep_line_ends=True).chunks()) == "a\r\nb\u2028\U0001f642"


@pytest.mark.parametrize(
    ("characters", "block_size", "error"),
    [(501, 15, None), (500, 15, "50 tokens for validation are too few"), (501, 449, None), (501, 450, "too few for a context of 450")],
)
def test_the_shortest_text_that_trains(tmp_path: Path, characters: int, block_size: int, error: str | None) -> None:
    text = as_text(("ab" * 300)[:characters])
    config = replace(TINY, block_size=block_size, max_iters=1, eval_interval=1, sample_chars=0)
    if error is None:
        Trainer.start(config, text, tmp_path / "run").run()
    else:
        with pytest.raises(TrainingError, match=error):
            Trainer.start(config, text, tmp_path / "run")
        assert not (tmp_path / "run").exists()


# The loss


def test_full_loss_is_the_mean_over_every_target() -> None:
    model = GPT(GPTConfig(vocab_size=8, block_size=7, n_layer=1, n_head=2, n_embd=8)).train()
    for length in (2, 7, 8, 9, 100):
        ids = torch.randint(0, 8, (length,), dtype=torch.uint8)
        model.eval()
        total = 0.0
        for start in range(0, length - 1, 7):
            window = ids[start : min(start + 7, length - 1)].long()
            logits = model(window[None])[0]
            total += F.cross_entropy(logits, ids[start + 1 : start + 1 + len(window)].long(), reduction="sum").item()
        model.train()
        assert full_loss(model, ids) == pytest.approx(total / (length - 1), rel=1e-6)
        assert full_loss(model, ids) == full_loss(model, ids)
    assert model.training


def test_the_loss_log_keeps_what_it_is_given() -> None:
    log = LossLog(CPU)
    for number in range(700):
        log.append(torch.tensor(0.1 * number))
    values = log.values(lambda x: x)
    other = LossLog(CPU)
    other.restore(values)
    assert other.values(lambda x: x) == values == [pytest.approx(0.1 * number) for number in range(700)]
    other.clear()
    assert other.values(lambda x: x) == []


# The optimizer


def test_decay_is_for_matrices_only() -> None:
    model = GPT(GPTConfig(vocab_size=8, block_size=7, n_layer=2, n_head=2, n_embd=8))
    config = replace(TINY, weight_decay=0.1, embedding_decay=0.03)
    names = {p: n for n, p in model.named_parameters()}
    decays = {
        names[p]: group["weight_decay"]
        for optimizer in build_optimizers(model, config, torch.float32).values()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decays == {name: 0.03 if "embedding" in name else 0.1 if p.ndim == 2 else 0.0 for name, p in model.named_parameters()}
    muon = {name.split(".", 2)[2] for name, p in model.named_parameters() if kind_of(name, p, use_muon=True) in ("stacked", "matrix")}
    assert muon == {"attn.qkv.weight", "attn.proj.weight", "mlp.up.weight", "mlp.down.weight"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schedule": "constant"}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "wsd", "decay_fraction": 0.4, "min_lr": 0.0}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (
            {"schedule": "cosine", "min_lr": 1e-4},
            [0.25, 0.5, 0.75, 1, *(0.1 + 0.45 * (1 + math.cos(math.pi * i / 6)) for i in range(6))],
        ),
    ],
)
def test_schedules(change: dict[str, object], expected: Sequence[float]) -> None:
    config = replace(TINY, max_iters=10, warmup_iters=4, learning_rate=1e-3, **change)  # type: ignore[arg-type]
    assert [schedule(config, step) for step in range(10)] == pytest.approx(expected)
    assert plateau_end(config) == (6 if config.schedule == "wsd" else 0)


def test_both_optimizers_follow_the_schedule() -> None:
    config = replace(TINY, optimizer="muon", warmup_iters=10, learning_rate=1e-3, muon_lr=0.02)
    optimizers = build_optimizers(GPT(config.model_config(8)), config, torch.float32)
    set_learning_rates(optimizers, config, 4)
    rates = {name: [group["lr"] for group in o.param_groups] for name, o in optimizers.items()}
    assert rates == {"adamw": pytest.approx([5e-4, 5e-4, 5e-4]), "muon": pytest.approx([0.01, 0.01])}


def test_the_moving_average_is_one() -> None:
    model = GPT(GPTConfig(vocab_size=3, block_size=2, n_layer=1, n_head=1, n_embd=4))
    average = MovingAverage(model, 0.9)
    expected = model.lm_head.weight.clone()
    for step in range(1, 200):
        torch.nn.init.normal_(model.lm_head.weight)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.lm_head.weight.detach()
    torch.testing.assert_close(average.model.lm_head.weight, expected)


class ReplayedGraph:
    """Stands for a CUDA graph: a replay computes what was recorded, into the same place."""

    def __init__(self, step: GraphedStep) -> None:
        self.step = step

    def replay(self) -> None:
        self.step.loss = self.step.loss_and_gradient()
        self.step.update(self.step.optimizers)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_graphed_step_does_every_update_once(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things in it, without a GPU: ordinary steps, one capture that computes nothing, replays."""
    captures = []

    def capture(step: GraphedStep) -> None:
        captures.append(step.warm_ups)
        step.graph = ReplayedGraph(step)  # type: ignore[assignment]
        step.graph_dropout = step.dropout

    def warm_up(step: GraphedStep) -> torch.Tensor:
        step.warm_ups += 1
        return TrainStep.__call__(step, int(step.step))

    monkeypatch.setattr(GraphedStep, "capture", capture)
    monkeypatch.setattr(GraphedStep, "warm_up", warm_up)
    text = Text.of("to be or not to be " * 60)
    config = replace(TINY, optimizer=optimizer)  # type: ignore[arg-type]
    plain, graphed = (Trainer(config, text, RunDirectory(tmp_path)) for _ in range(2))
    graphed.step.__class__ = GraphedStep
    losses = [(plain.step(i).item(), graphed.step(i).item()) for i in range(8)]
    assert captures == [WARM_UP_STEPS]
    assert all(a == b for a, b in losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), graphed.model.parameters(), strict=True))


# What is said and shown


def curve(*losses: tuple[float, float]) -> list[Point]:
    return [Point(10 * i + 10, train, val, 1.0) for i, (train, val) in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([(3, 3), (2, 2.5)], None),
        ([(3, 3), (2, 2.5), (1.5, 2.4)], None),
        ([(3, 2.4), (2, 2.5), (1.5, 2.6)], "validation rises (2.4000 to 2.6000) while training falls; best/ keeps step 10"),
        ([(3, 2.4), (3.1, 2.5), (3.2, 2.6)], None),
        ([(3, 2.4), (2, 2.6), (1.5, 2.5)], None),
    ],
)
def test_overfitting_is_said_in_words(losses: list[tuple[float, float]], word: str | None) -> None:
    said = overfitting(curve(*losses))
    assert said is None if word is None else word in (said or "")


def test_a_small_text_overfits_and_patience_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = torch.randint(0, 26, (600,), generator=torch.Generator().manual_seed(1)).tolist()
    (tmp_path / "noise.txt").write_text("".join(chr(97 + i) for i in letters))
    config = replace(TINY, n_embd=48, dropout=0.0, max_iters=400, eval_interval=20, patience=4, save_interval=1000)
    assert main(["--data", str(tmp_path / "noise.txt"), "--out", str(tmp_path / "run"), *flags(config)]) == 0
    out = capsys.readouterr().out
    assert "overfitting: validation rises" in out
    assert "no better loss for 4 validations: stopped at step" in out
    saved = [p.name for p in (tmp_path / "run").glob("step-*")]
    assert (tmp_path / "run" / "best").resolve().name in saved
    assert f"at step {int((tmp_path / 'run' / 'best').resolve().name.removeprefix('step-'))}. Serve it" in out


def test_without_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr("training.progress.time.monotonic", lambda: now)
    progress = Progress(total=1000, step=0, tokens_per_step=100, flops_per_step=1e9, peak_flops=1e10)
    for step in range(1, 101):
        now += 0.5
        progress.update(step, 2.5, None)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 6
    assert out.startswith("about 8:18 min for 995 steps at this pace\n")
    assert "step     20 of 1000  loss 2.500  200 tokens/s  MFU 20%  8:10 min left" in out


def test_samples_are_what_the_service_would_write() -> None:
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=4, block_size=8, n_layer=2, n_head=3, n_embd=16)).train()
    torch.nn.init.normal_(model.lm_head.weight)
    exact = ExactModel(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    tokenizer = CharTokenizer(["\n", "a", "b", "c"])
    expected = list(generate(exact, [], SamplingParams(max_new_tokens=40, seed=5, stride=4), start=0))
    assert sample_text(model, tokenizer, 5, 40) == tokenizer.decode(expected)
    assert model.training


def test_a_long_run_says_at_its_start_what_would_be_quicker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr("training.progress.time.monotonic", lambda: now)
    progress = Progress(total=1000, step=20, tokens_per_step=100, flops_per_step=1e9, peak_flops=1e10)
    for step in range(21, 30):
        now += 2.0
        progress.update(step, 2.5, None)
    assert "about 32:30 min for 975 steps at this pace; for a first model in some minutes: --preset quick\n" in capsys.readouterr().out


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_in_the_model_card_makes_the_same_configuration(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []

    def start(config: TrainConfig, *rest: object) -> None:
        seen.append(config)
        raise TrainingError("enough")

    monkeypatch.setattr(Trainer, "start", start)
    config = replace(PRESETS[preset], seed=7, track="tensorboard", learning_rate=1.25e-4)
    text = Text.of("x", "a b.txt")
    words = command_line(config, text)
    assert words.startswith(f"python -m training --preset {preset} --data 'a b.txt' ")
    monkeypatch.setattr("training.data.load_text", lambda *files, **options: text)
    import shlex

    assert main(shlex.split(words)[3:]) == 2
    assert seen == [config]


def test_flops_of_the_original_configuration() -> None:
    config = PRESETS["original"]
    assert flops_per_token(config.model_config(65)) * config.tokens_per_step == pytest.approx(0.209e12, rel=0.01)


@pytest.mark.parametrize("moment", ["at once", "in the first step"])
def test_a_compiler_that_fails_does_not_break_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    def fail(*arguments: object) -> object:
        raise RuntimeError("no compiler here\nand a long trace")

    monkeypatch.setattr(torch, "compile", fail if moment == "at once" else lambda model: fail)
    text, config = Text.of("to be or not to be " * 60), replace(TINY, max_iters=3, eval_interval=3)
    compiled = Trainer.start(config, text, tmp_path / "compiled")
    compile_step(compiled.step)
    assert "--compile: RuntimeError: no compiler here; going on without" in capsys.readouterr().err
    plain = Trainer.start(config, text, tmp_path / "plain")
    for trainer in (compiled, plain):
        trainer.run()
    assert compiled.curve == plain.curve


def test_configurations_survive_json_and_unknown_options_do_not() -> None:
    for preset in PRESETS.values():
        assert TrainConfig.from_json(preset.to_json()) == preset
    assert TrainConfig.from_json({"seed": 3}) == TrainConfig(seed=3)
    with pytest.raises(TrainingError, match="unknown training option 'sed'"):
        TrainConfig.from_json({"sed": 3})
    with pytest.raises(TrainingError, match="--seed must be of type int"):
        TrainConfig.from_json({"seed": "3"})
    with pytest.raises(TrainingError, match="--schedule must be one of cosine, constant, wsd"):
        TrainConfig.from_json({"schedule": "linear"})
