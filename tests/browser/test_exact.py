"""The arithmetic in JavaScript is the reference's: golden texts, digests of logits and single functions, in every engine that is here."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from model.checkpoint.files import MODEL, Checkpoint
from model.exact.digests import NAMES, answers_of
from model.exact.network import ExactModel
from model.exact.probes import PROBES, arguments
from model.params import SamplingParams
from service.api.pages import PLAYGROUND
from tests.browser.engines import ENGINES
from tests.golden.goldens import Answer, Request, check, requests
from tests.golden.models import NAMES as MODELS
from tests.golden.models import golden_checkpoint

SCRIPTS = ("exact.js", "exact-arithmetic.js", "exact-sampling.js", "safetensors.js")
NUM_ARGUMENTS = 2_000
WITHIN_OTHERS = {"high", "low", "linear_wide", "attention", "adjusted", "least", "log_total", "logprob"}
"""Functions of the reference that are no function of their own in JavaScript; the texts and the logits hold them."""
NEUTRAL = ("seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("golden")
    return {name: golden_checkpoint(name, folder) for name in MODELS}


def asked(checkpoint: Checkpoint, request: Request) -> dict[str, Any]:
    """A golden request as run.js takes it."""
    params: SamplingParams = request.params
    return {
        "prompt": checkpoint.tokenizer.encode(request.prompt),
        "params": {name: getattr(params, name) for name in NEUTRAL},
        "start": checkpoint.start,
        "stride": params.stride,
        "length": params.max_new_tokens,
        "top": params.num_logprobs,
    }


def passes(checkpoint: Checkpoint) -> list[list[int]]:
    """What the digests are of."""
    questions = answers_of(ExactModel(checkpoint.config, checkpoint.tensors), [i * i % checkpoint.config.vocab_size for i in range(256)])
    return [list(each) for name in NAMES for each in questions.passes(name)]


def probe_arguments(number: int) -> list[Any]:
    """The first arguments of a probe, column by column; sums of weights only as large as 8,191 tokens can make them."""
    columns: list[Any] = [np.asarray(column)[:NUM_ARGUMENTS] for column in arguments(number)]
    if PROBES[number].name in ("target", "nucleus"):
        small = columns[1] < 1 << 53
        columns = [column[small] for column in columns]
    return columns


def probe_rows(number: int) -> list[list[float]]:
    """One row for each call."""
    columns = probe_arguments(number)
    if PROBES[number].name == "rsigma":  # a sum of squares of 63 bits is no number of JavaScript's, but two
        squares = columns[0].astype(np.int64)
        columns = [squares >> 26, squares & (1 << 26) - 1, *columns[1:]]
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of the playground, the models, and the questions."""
    folder = tmp_path_factory.mktemp("exact")
    for path in [*(PLAYGROUND / name for name in SCRIPTS), *(Path(__file__).parent / "exact").iterdir()]:
        if path.is_file():
            shutil.copy(path, folder)
    models = []
    for name, checkpoint in checkpoints.items():
        (folder / f"{name}.safetensors").write_bytes(safetensors.numpy.save(dict(checkpoint.tensors)))
        questions = [asked(checkpoint, request) for request in requests(checkpoint)]
        models.append({"name": name, "config": checkpoint.config.to_json(), "requests": questions, "passes": passes(checkpoint)})
    probes = {probe.name: probe_rows(number) for number, probe in enumerate(PROBES) if probe.name not in WITHIN_OTHERS}
    (folder / "cases.json").write_text(json.dumps({"models": models, "probes": probes}))
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def answer(request: pytest.FixtureRequest, folder: Path) -> Any:
    """What an engine says to all of it."""
    is_here, run = ENGINES[request.param]
    if not is_here:
        reason = f"there is no {request.param} here"
        (pytest.fail if os.environ.get("CI") and request.param == "chromium" else pytest.skip)(reason)
    found = run(folder)
    assert "error" not in found, found
    return found


@pytest.mark.parametrize("name", MODELS)
def test_golden_texts(answer: Any, checkpoints: dict[str, Checkpoint], name: str) -> None:
    def engine(checkpoint: Checkpoint, asked: Sequence[Request]) -> list[Answer]:
        return [parsed(found, request.params.num_logprobs) for found, request in zip(answer["models"][name]["texts"], asked, strict=True)]

    check(checkpoints[name], name, engine)


def parsed(found: dict[str, Any], top: int | None) -> Answer:
    """An answer of run.js."""
    if top is None:
        return Answer(found["tokens"])
    size = 1 + 2 * top
    rows = [found["logprobs"][i : i + size] for i in range(0, len(found["logprobs"]), size)]
    return Answer(found["tokens"], [(row[0], [(row[i], row[i + 1]) for i in range(1, size, 2)]) for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_logits(answer: Any, checkpoints: dict[str, Checkpoint], name: str) -> None:
    checkpoint = checkpoints[name]
    model = ExactModel(checkpoint.config, checkpoint.tensors)
    for tokens, found in zip(passes(checkpoint), answer["models"][name]["logits"], strict=True):
        assert base64.b64decode(found) == model.text_logits(tokens).astype("<f4").tobytes()


@pytest.mark.parametrize("number", [n for n, probe in enumerate(PROBES) if probe.name not in WITHIN_OTHERS], ids=lambda n: PROBES[n].name)
def test_single_functions(answer: Any, number: int) -> None:
    """Quantising hides a wrong last bit for many tokens, so that texts and logits alone would not prove a function."""
    probe = PROBES[number]
    expected = probe.function(*probe_arguments(number))
    assert len(expected) > NUM_ARGUMENTS / 3
    assert np.array_equal(np.array(answer["probes"][probe.name], np.float64), expected.astype(np.float64))


def test_the_file_of_every_type(folder: Path, tmp_path: Path) -> None:
    """float32, bfloat16 and float16, subnormal ones included, come out as the numbers that they are."""
    if not ENGINES["node"][0]:
        pytest.skip("there is no node here")
    values = np.array([0.0, -1.5, 65504.0, 6e-8, 2.0**-14, 1.0, 3.140625, -0.25], np.float32)
    wide = (values.view(np.uint32) >> 16).astype(np.uint16)
    parts = {"a": ("F32", values.tobytes()), "b": ("F16", values.astype(np.float16).tobytes()), "c": ("BF16", wide.tobytes())}
    header, data = {}, b""
    for name, (dtype, raw) in parts.items():
        header[name] = {"dtype": dtype, "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (tmp_path / MODEL).write_bytes(len(text).to_bytes(8, "little") + text + data)
    shutil.copy(folder / "safetensors.js", tmp_path / "safetensors.js")
    shutil.copy(folder / "node.mjs", tmp_path)
    (tmp_path / "run.js").write_text(
        'import { readTensors } from "./safetensors.js";\n'
        f'export const run = async (read) => Object.fromEntries(Object.entries(readTensors(await read("{MODEL}")))'
        ".map(([name, values]) => [name, [...values]]));\n"
    )
    found = ENGINES["node"][1](tmp_path)
    assert found["a"] == values.tolist()
    assert found["b"] == values.astype(np.float16).astype(np.float32).tolist()
    assert found["c"] == (wide.astype(np.uint32) << 16).view(np.float32).tolist()
