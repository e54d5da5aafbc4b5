"""``python -m tests.golden`` writes the golden files anew, by the reference: for a new checkpoint or a new version of the arithmetic."""

import json
import tempfile
from pathlib import Path

from tests.golden.goldens import entries, golden_file, reference
from tests.golden.models import NAMES, golden_checkpoint

with tempfile.TemporaryDirectory() as folder:
    for name in NAMES:
        checkpoint = golden_checkpoint(name, Path(folder))
        content = {"checkpoint": checkpoint.id, "requests": entries(checkpoint, reference)}
        golden_file(name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{golden_file(name).name}: {len(content['requests'])} requests of {checkpoint.id[:19]}…")
