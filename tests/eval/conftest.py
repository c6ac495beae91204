"""What the tests of evaluation share: lmms-eval with the demo model loaded once, and folders of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import test_zoo_processors as processors

from tokenreduce.eval import tiny_models as zoo

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}{{ ' <image> ' }}{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %} word"
)
NEEDS = "lmms-eval is not installed; pip install 'tokenreduce[eval]'"


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory):
    """Demo sets and the caches of ``datasets`` go to a temporary folder, in child processes too."""
    place = tmp_path_factory.mktemp("data")
    before = dict(os.environ)
    os.environ |= {
        "TOKENREDUCE_DATA": str(place),
        "HF_DATASETS_CACHE": str(place / "cache"),
        "HF_DATASETS_OFFLINE": "1",
    }
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    yield place
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def evaluate(own_folders):
    """``evaluate(lm, task, limit)``: results of lmms-eval's Python interface, with the model kept."""
    pytest.importorskip("lmms_eval", reason=NEEDS)
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    from tokenreduce.eval.harness import TASKS

    logger.remove()
    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False)

    def run(lm, task="tr_demo_images", limit=6):
        return simple_evaluate(
            model=lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, batch_size=1
        )

    return run


@pytest.fixture(scope="session")
def lm(own_folders):
    """The demo model as ``--model tokenreduce``."""
    pytest.importorskip("lmms_eval", reason=NEEDS)
    from lmms_eval.models import get_model

    made = get_model("tokenreduce").create_from_arg_string("pretrained=demo,device=cpu")
    made.reused = True
    return made


@pytest.fixture
def folder(request, tmp_path):
    """A tiny model of a family with a processor that has a word for every token it may say."""
    model = zoo.build(request.param)
    made = processors.processor(request.param)
    made.tokenizer.add_tokens([f"w{i}" for i in range(model.config.get_text_config().vocab_size)])
    made.chat_template = TEMPLATE
    made.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    return request.param, tmp_path


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """Workers find ``toy_worker``, which leaves its mark where one dies."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("TOY_MARK", str(tmp_path / "died"))
