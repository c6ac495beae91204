"""``auto``: it takes the best of a table that fits, holds the budget, and says what it took and why."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from models import llava, prompt
from scripts import script

import tokenreduce as tr
from tokenreduce.auto import Auto
from tokenreduce.best_known import decision
from tokenreduce.best_known_table import OWN

FACTS = tr.ModelFacts(
    family="llava", stages=("encoder", "projector", "llm", "cache", "decode"), tower_depth=4, feature_block=2, has_cls=True,
    decoder_depth=4, tokens_per_image=16,
)  # fmt: skip
HEAD = "model,task,method,keep,relative,token_share,tokens_in"


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.fixture
def table(tmp_path):
    def written(*rows, head=HEAD):
        file = tmp_path / f"table{len(list(tmp_path.iterdir()))}.csv"
        file.write_text("\n".join([head, *rows]) + "\n")
        return str(file)

    return written


def taken(table=None, facts=FACTS, **about):
    return decision(Auto(table=table, **about), facts)


def test_report_trace_and_log_say_what_it_took_and_why(model, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "tokenreduce"), tr.wrapped(model, "auto", keep=0.25):
        model(**prompt(model, [1]))
        report, trace = tr.report(model), tr.trace(model)
    (name,) = report.methods
    assert report.tokens_kept == [[4]]
    assert report.choice.startswith(f"{name}: 100% of the unreduced score at keep=0.25, the best of ")
    trace.save(tmp_path / "trace.npz")
    assert report.choice == trace.choice == report.as_dict()["choice"] == tr.load_trace(tmp_path / "trace.npz").choice
    assert f"auto is {report.choice}" in caplog.text
    assert "auto is  " in str(report)
    with tr.wrapped(model, name, keep=0.25):
        model(**prompt(model, [1]))
        assert tr.report(model).choice == tr.trace(model).choice == ""


def test_it_takes_the_best_at_the_nearest_budget_and_at_the_next_where_several_are_equal(table):
    rows = (
        "m,t,hiprune,0.5,0.9,0.5,16", "m,t,fastervlm,0.5,0.9,0.5,16", "m,t,fastv,0.5,1.0,0.75,16", "m,t,uniform,0.5,0.8,0.5,16",
        "m,t,hiprune,0.25,0.6,0.25,16", "m,t,fastervlm,0.25,0.7,0.25,16", "m,t,uniform,4,0.8,0.25,16", "m,t,unreduced,1.0,1,1,16",
    )  # fmt: skip
    own = table(*rows)
    assert taken(own, keep=0.5)[0] == tr.FasterVLM(keep=0.5)  # fastv keeps three quarters of the tokens on average
    assert taken(own, keep=0.4)[0].name == "fastervlm"
    method, why = taken(own, keep=0.2)
    assert method == tr.Uniform(keep=0.2)  # a count in the table is a share of what came in
    assert why == "uniform: 80% of the unreduced score at keep=0.25, the best of 3 on t of m"
    assert taken(own, keep=4)[0] == tr.Uniform(keep=4)
    assert taken(own, keep=0.5, positions="renumber")[0].positions == "renumber"


def test_a_method_must_stand_in_every_task(table):
    own = table("m,a,hiprune,0.5,0.9,0.5,16", "m,b,hiprune,0.5,0.5,0.5,16", "m,a,uniform,0.5,1.0,0.5,16")
    assert taken(own)[0].name == "hiprune"


def test_what_does_not_fit_is_passed_over_by_name(table):
    own = table(
        'm,t,"fastervlm(score=cls)",0.5,1.0,0.5,16', "m,t,uniform,0.5,0.8,0.5,16", "m,t,fastervlm + fastv,0.5,1,0.5,16"
    )
    assert taken(own)[0] == tr.FasterVLM(score="cls")
    method, why = taken(own, dataclasses.replace(FACTS, has_cls=False))
    assert method.name == "uniform"
    assert "passed over because they do not fit: fastervlm" in why
    own = table('m,t,"fastervlm(score=cls)",0.5,1.0,0.5,16')
    with pytest.raises(ValueError, match=r"nothing that fits this llava model: fastervlm"):
        taken(own, dataclasses.replace(FACTS, has_cls=False))


def test_what_the_table_does_not_know_is_said():
    video = decision(Auto(keep=0.25), FACTS, images_as_video=True)
    assert video == taken(keep=0.25, kind="video")
    assert "tr_demo_video" in video[1]
    assert (
        "nothing in the table is of kind 'document', so it is of photo, video" in taken(keep=0.25, kind="document")[1]
    )
    other = taken(keep=0.25, facts=dataclasses.replace(FACTS, family="qwen2_5_vl"))[1]
    assert "nothing in the table is of qwen2_5_vl models, so it is of llava" in other


def test_it_is_explained_like_any_method():
    assert tr.explain("auto").acts == "where the method does that it becomes"


def test_what_cannot_be_meant_is_told(model, table):
    with pytest.raises(ValueError, match=r"kind='page'; allowed: 'document', 'photo', 'video'"):
        tr.wrap(model, "auto", kind="page")
    for wrong in ("nowhere.csv", table("1,2", head="a,b"), table()):
        with pytest.raises(ValueError, match=r"table\.csv of tokenreduce report"):
            tr.wrap(model, "auto", table=wrong)
    with pytest.raises(ValueError, match=r"keep=64.*images of this llava model differ in tokens; allowed: a fraction"):
        taken(keep=64, facts=dataclasses.replace(FACTS, tokens_per_image=None))
    assert not tr.is_wrapped(model)


def test_the_table_is_what_its_script_makes_of_the_committed_data(tmp_path):
    made = script("benchmarks/best_known.py")
    before = OWN.read_bytes()
    made.TABLE = tmp_path / "best_known.csv"
    made.main()
    assert made.TABLE.read_bytes() == before
