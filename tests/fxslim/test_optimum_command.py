"""`optimum-cli export fxslim`, through the real optimum-cli: `make test` runs this file with optimum on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from fxslim.cli import app
from tests.fxslim.samples import save_untrained_opt

# Without the integration's folder on the path there is an optimum, but no subcommand.
optimum = pytest.mark.skipif(
    find_spec("optimum") is None or find_spec("optimum.commands") is None,
    reason="optimum does not go with this transformers: see `make test`",
)
pytestmark = [optimum, pytest.mark.filterwarnings("ignore")]  # of optimum and of what it imports

INTEGRATION = Path(__file__).parents[2] / "integrations" / "optimum-fxslim"
FAST = ("--latency-seconds", "0.1")


def optimum_cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(INTEGRATION)])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "FXSLIM_DEBUG": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_opt(tmp_path_factory.mktemp("model"))


def test_the_help_of_optimum_lists_it_and_its_own_has_every_option_of_slim() -> None:
    assert "fxslim" in optimum_cli("export", "--help").stdout
    said = optimum_cli("export", "fxslim", "--help")
    assert said.returncode == 0, said.stderr
    slim: Any = typer.main.get_command(app)
    options = {p.opts[0] for p in slim.commands["slim"].params} - {"model", "--out", "--help"}
    missing = {
        option for option in options if f"{option} " not in said.stdout + " " and f"{option}]" not in said.stdout
    }
    assert not missing and "--model" in said.stdout


@pytest.mark.slow
def test_a_slim_decoder_loads_in_the_stock_class(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--model", model, "--task", "text-generation", "--keep", "0.8", "--loader-compatible", *FAST)
    ran = optimum_cli("export", "fxslim", *words, out)
    assert ran.returncode == 0, ran.stderr
    assert "proven equal to the masked original" in ran.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["loader"]["failures"] == [] and report["costs"]["params"][1] < report["costs"]["params"][0]

    from optimum.onnxruntime import ORTModelForCausalLM

    loaded = ORTModelForCausalLM.from_pretrained(out)
    ids = torch.randint(2, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "min_new_tokens": 4}
    tokens = loaded.generate(**given, do_sample=False, pad_token_id=1, eos_token_id=None)
    assert tokens.shape == (2, 9) and torch.equal(tokens[:, :5], ids)


@pytest.mark.slow
def test_lists_flags_and_wrong_options_reach_slim(model: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--keep", "0.9", "--keep-fixed", "nothing.here", "--keep-fixed", "nor.here")
    ran = optimum_cli("export", "fxslim", *words, tmp_path / "out")
    assert ran.returncode == 2 and "nothing.here" in ran.stderr and "Traceback" not in ran.stderr
    ran = optimum_cli("export", "fxslim", "--model", model, "--of", "nonsense", "--keep", "0.9", tmp_path / "out")
    assert ran.returncode == 2 and "nonsense" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()
