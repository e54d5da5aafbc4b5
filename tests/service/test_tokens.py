"""/tokenize, /detokenize and /tokenizer_info, in vLLM's forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from model.tokenizer.byte import ByteTokenizer
from tests.service.running import Running

Serve = Callable[..., Running]


def test_there_and_back(serve: Serve) -> None:
    server = serve()
    for tokenizer in (server.engine.loaded[0].tokenizer, ByteTokenizer()):
        served = replace(server.engine.loaded[0], tokenizer=tokenizer, vocab_size=tokenizer.vocab_size)
        server.engine.loaded = (served,)
        found = server.post("/tokenize", prompt="R\u00e9\r\u2028😀", model="folio", return_token_strs=True).json()
        assert found["tokens"] == tokenizer.encode("R\u00e9\r\u2028😀")
        assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
        assert found["max_model_len"] == 64
        assert server.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "R\u00e9\r\u2028😀"}
        info = server.http.get("/tokenizer_info").json()
        assert (info["tokenizer_class"], info["vocab_size"], info["bos_token"], info["eos_token"]) == (
            *(tokenizer.kind, tokenizer.vocab_size, "\n"),
            None,
        )
        assert tokenizer.texts[info["bos_token_id"]] == "\n"


def test_what_is_not_taken(shared: Running) -> None:
    def refused(path: str, **body: object) -> tuple[int, str, str]:
        answer = shared.http.post(path, json=body)
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["param"]

    assert refused("/tokenize", prompt="日") == (422, "unknown_characters", "prompt")
    assert refused("/tokenize", prompt="R", messages=[]) == (422, "unknown_field", "messages")
    assert refused("/tokenize", prompt="R", model="gpt-4") == (404, "checkpoint_not_found", "model")
    assert refused("/detokenize", tokens=[75]) == (422, "invalid_request", "tokens")
    assert refused("/detokenize", tokens=[-1])[:2] == (422, "invalid_request")
    assert refused("/detokenize", tokens=[]) == (422, "invalid_request", "tokens")
