"""GPT-2 directories out and in, held against `transformers` itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model import load_checkpoint
from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import CheckpointError
from model.config import Activation, GPTConfig
from model.exact.network import ExactModel
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer
from training.__main__ import main
from training.config import TrainingError
from training.data import load_text
from training.dataset import Dataset
from training.exact_loss import choose_arithmetic
from training.huggingface import hf_tokenizer, import_hf

TOKENIZER = CharTokenizer.from_text("abc \n\u00e9\U0001f642xyz")


def checkpoint(path: Path, n_embd: int = 24, vocabulary: CharTokenizer = TOKENIZER, activation: Activation = "relu") -> GPT:
    """A random model whose every tensor matters, the head's bias included."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=vocabulary.vocab_size, block_size=8, n_layer=2, n_head=3, n_embd=n_embd, activation=activation)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    write_checkpoint(path, checkpoint_files(model, vocabulary, [0, 1, 2]), {})
    return model


@pytest.mark.filterwarnings("ignore")  # of the libraries under test
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_transformers_computes_the_same_logits(tmp_path: Path, activation: Activation) -> None:
    transformers = pytest.importorskip("transformers")
    model = checkpoint(tmp_path / "c", activation=activation)
    assert main(["export", str(tmp_path / "c"), "--to", "hf"]) == 0
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "c-hf").eval()
    ids = torch.randint(0, TOKENIZER.vocab_size, (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "c-hf")
    text = "a\u00e9 b\n\U0001f642zz"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(TOKENIZER.encode(text)) == text
    assert main(["import", str(tmp_path / "c-hf"), str(tmp_path / "again")]) == 0
    again = load_checkpoint(tmp_path / "again")
    assert again.tokenizer.texts == TOKENIZER.texts
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_made_by_transformers_is_imported_with_equal_logits(tmp_path: Path, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    vocab_size = TOKENIZER.vocab_size
    sizes = {"n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "bos_token_id": None, "eos_token_id": None}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocab_size, tie_word_embeddings=tied, **sizes)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(hf_tokenizer(TOKENIZER)))
    assert import_hf(tmp_path / "hf", tmp_path / "c")[0].qkv_bias
    ids = torch.randint(0, vocab_size, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(tmp_path / "c").model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_greedy_choices_in_integers_are_those_of_transformers(tmp_path: Path) -> None:
    """No text given: activations of 16 bits. A random model has near ties, which 8 bits of weights may break: those are left out."""
    transformers = pytest.importorskip("transformers")
    checkpoint(tmp_path / "c", activation="gelu_tanh")
    assert main(["export", str(tmp_path / "c"), "--to", "hf"]) == 0
    assert main(["import", str(tmp_path / "c-hf"), str(tmp_path / "again")]) == 0
    imported = read_checkpoint(tmp_path / "again")
    assert imported.config.arithmetic == "w8a16"
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "c-hf").eval()
    ours, clear = ExactModel(imported.config, imported.tensors), 0
    for first in range(imported.config.vocab_size):
        text = theirs.generate(torch.tensor([[first]]), max_new_tokens=7, do_sample=False, pad_token_id=0)
        with torch.no_grad():
            logits = theirs(text).logits[0].numpy()
        gaps = logits.max(-1) - np.sort(logits, -1)[:, -2]
        is_clear = gaps > 0.06 * np.abs(logits).max()
        clear += int(is_clear.sum())
        assert (ours.text_logits(text[0].tolist()).argmax(-1) == logits.argmax(-1))[is_clear].all()
    assert clear >= 20


def test_a_text_decides_on_the_bits_of_an_import(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c", vocabulary=CharTokenizer.from_text("abc \n"))
    text = tmp_path / "text.txt"
    text.write_text("abc cab\n" * 200, encoding="utf-8")
    assert main(["export", str(tmp_path / "c"), "--to", "hf"]) == 0
    assert main(["import", str(tmp_path / "c-hf"), str(tmp_path / "again"), "--data", str(text)]) == 0
    imported = read_checkpoint(tmp_path / "again")
    data = Dataset(load_text([str(text)]), imported.tokenizer, 8, torch.device("cpu"))
    arithmetic, cost = choose_arithmetic(load_checkpoint(tmp_path / "again").model, data.val)
    assert imported.config.arithmetic == arithmetic
    assert imported.manifest["exact_cost"] == pytest.approx(cost, abs=1e-6)


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "c", n_embd=16)
    assert main(["export", str(tmp_path / "c"), "--to", "hf"]) == 2
    assert "cannot hold 3 heads of 5 in a width of 16" in capsys.readouterr().err
    assert not (tmp_path / "c-hf").exists()


def test_a_bias_that_fits_nowhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "c", n_embd=6, vocabulary=CharTokenizer.from_text("abcdefghijklmnop"))
    assert main(["export", str(tmp_path / "c"), "--to", "hf"]) == 2
    assert "no bias on the head" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ("config.json", {"model_type": "llama"}, "model_type is 'llama'"),
        ("config.json", {"n_inner": 7}, "n_inner is 7"),
        ("config.json", {"n_layer": 3}, "is not a GPT-2 that can be read"),
        ("config.json", {"n_embd": 48}, "is not a GPT-2 that can be read"),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"ab": 0}}}, "distinct single characters"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "no token for the byte 0x00"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": [["\u0120a", -1.0]]}}, "only byte-level BPE"),
        ("tokenizer.json", {"model": {"type": "Words"}}, "no BPE that the tokenizers library reads"),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 2}}}, "are not 0, 1, 2"),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "has 1 tokens, config.json says"),
    ],
)
def test_what_is_no_gpt2_of_ours_is_refused(tmp_path: Path, file: str, change: dict[str, object], message: str) -> None:
    checkpoint(tmp_path / "c")
    assert main(["export", str(tmp_path / "c"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    data = json.loads((tmp_path / "hf" / file).read_bytes())
    (tmp_path / "hf" / file).write_text(json.dumps({**data, **change}))
    with pytest.raises((TrainingError, CheckpointError), match=message):
        import_hf(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_imported_checkpoint_is_exported_and_trained_on(tmp_path: Path) -> None:
    """It knows no text of its own: exporting it was a KeyError."""
    checkpoint(tmp_path / "c", activation="gelu_tanh")
    assert main(["export", str(tmp_path / "c"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "imported")]) == 0
    text = tmp_path / "t.txt"
    text.write_text("abc xyz\n" * 200)
    data = ["--data", str(text)]
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "small"), "--dtype", "float16", *data]) == 0
    manifest = read_checkpoint(tmp_path / "small").manifest
    assert manifest["weights_dtype"] == "float16" and manifest["val_loss"] > 0
    run = tmp_path / "run"
    assert main(["--init-from", str(tmp_path / "imported"), *data, "--out", str(run), "--max-iters", "2", "--eval-interval", "1"]) == 0
    trained = load_checkpoint(run / "last")
    assert (trained.config.qkv_bias, trained.config.activation) == (True, "gelu_tanh")
    assert main(["resume", str(run)]) == 0


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"


def with_template(hf: Path, **changes: object) -> None:
    config = json.loads((hf / "tokenizer_config.json").read_bytes())
    (hf / "tokenizer_config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("form", ["text", "named", "file"])
def test_a_chat_template_comes_along(tmp_path: Path, form: str) -> None:
    """And goes into what is trained on from it, and out again."""
    checkpoint(tmp_path / "c", activation="gelu_tanh")
    hf = tmp_path / "hf"
    assert main(["export", str(tmp_path / "c"), str(hf), "--to", "hf"]) == 0
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    with_template(hf, bos_token="a", eos_token={"content": "b"}, chat_template=named if form == "named" else TEMPLATE)
    if form == "file":  # as newer versions write it; it counts
        with_template(hf, chat_template="no")
        (hf / "chat_template.jinja").write_text(TEMPLATE)
    assert main(["import", str(hf), str(tmp_path / "imported")]) == 0
    expected = {"chat_template": TEMPLATE, "special_tokens": {"bos_token": "a", "eos_token": "b"}}
    assert expected.items() <= read_checkpoint(tmp_path / "imported").manifest.items()
    text = tmp_path / "t.txt"
    text.write_text("abc xyz\n" * 200)
    flags = ["--data", str(text), "--max-iters", "1", "--eval-interval", "1", "--out", str(tmp_path / "run")]
    assert main(["--init-from", str(tmp_path / "imported"), *flags]) == 0
    assert expected.items() <= read_checkpoint(tmp_path / "run" / "last").manifest.items()
    assert main(["export", str(tmp_path / "run" / "last"), str(tmp_path / "again"), "--to", "hf"]) == 0
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_bytes())
    assert {"chat_template": TEMPLATE, "bos_token": "a", "eos_token": "b"}.items() <= config.items()


def test_a_chat_template_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c")
    assert main(["export", str(tmp_path / "c"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    with_template(tmp_path / "hf", chat_template="{% if %}")
    with pytest.raises(CheckpointError, match="is not Jinja2 that can be run"):
        import_hf(tmp_path / "hf", tmp_path / "out")
