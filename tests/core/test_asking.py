"""A training that asks its person: votes, and a taste that is fitted again on the way.

The person likes bright pictures and clicks once at each look, through the same function as a page.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config
from small_runs import without_seconds
from voters import PICKED, Voter, taste_for_bright

from chunk_grpo_core.configfile.record import read_record
from chunk_grpo_core.method.asking import AskConfig
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.reward import NoReward
from chunk_grpo_core.rewards.balance import BalancedReward
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.rewards.files import digest
from chunk_grpo_core.rewards.parts import measurable
from chunk_grpo_core.rewards.taste.asking import AnswerClosed, answer_in_words
from chunk_grpo_core.rewards.taste.fit import fit_taste
from chunk_grpo_core.rewards.taste.head import load_head, save_head
from chunk_grpo_core.rewards.taste.picking.batches import keep_batches
from chunk_grpo_core.rewards.taste.picks import Taste
from chunk_grpo_core.rewards.taste.reward import load_taste
from chunk_grpo_core.rewards.taste.votes import load_votes
from chunk_grpo_core.runs.asking import check_asking
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.events import Asked, HeldOutEnd
from chunk_grpo_core.watch.history import read_metrics

ASK = AskConfig(every=2, pictures=8, clicks=5)


def votes_run(folder, voter, reward=None, *, resume=False, **settings):
    """Train on votes; the outcome and the LoRA."""
    usual = {"iterations": 4, "group_size": 4, "checkpoint_every": 2, "self_test": True}
    policy, more = ToyPolicy(), {}
    for name in ("listener", "check_cancel", "wants_stop"):
        more |= {name: settings.pop(name)} if name in settings else {}
    outcome = run_experiment(
        policy,
        reward or load_votes(folder / "taste", "best"),
        PROMPTS,
        ("new", "newer"),
        toy_config(**{**usual, **settings}),
        RunFolder(folder / "run"),
        resume=resume,
        evaluation_seeds=2,
        goes_on=voter,
        **more,
    )
    return outcome, policy.adapter.state_dict()


@pytest.fixture(scope="module", autouse=True)
def bright(tmp_path_factory):
    """Fit the taste of somebody who likes bright pictures, once."""
    folder = tmp_path_factory.mktemp("bright")
    save_head(fit_taste(taste_for_bright(folder)).head, folder / "head.safetensors")
    FITTED.append(folder)
    yield
    FITTED.clear()


FITTED: list[Path] = []


def bright_taste(folder):
    """A copy of that taste in a folder of its own, as a reward."""
    shutil.copytree(FITTED[0], folder / "mine")
    return load_taste(folder / "mine" / "head.safetensors")


def refit_run(folder, voter, reward=None, **settings):
    reward = reward or bright_taste(folder)
    return votes_run(folder, voter, reward, **{"iterations": 5, "ask": ASK, **settings})


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_votes_ask_once_for_each_group_that_is_trained_on_and_for_nothing_else(tmp_path):
    voter = Voter()
    outcome, _ = votes_run(tmp_path, voter)
    shown = {question.batches for question in voter.questions}
    assert voter.clicks == len(shown) == 4 * 2  # neither the self-test nor held-out prompts
    prompts = {s.prompt for pick in Taste(tmp_path / "taste").picks() for s in pick.shown}
    assert prompts <= set(PROMPTS)
    assert not outcome.is_measured and outcome.held_out == []
    assert all(row["masked_scores"] == 0 and row["advantage_std"] > 0 for row in outcome.rows)


@pytest.mark.parametrize("clicks", [1, 4, 7])
def test_votes_that_were_interrupted_go_on_to_the_same_lora_and_are_not_asked_again(
    tmp_path, clicks
):
    _, whole = votes_run(tmp_path / "whole", Voter())

    class Ends(Voter):
        def click(self, *args, **said):
            super().click(*args, **said)
            if self.clicks == clicks:
                raise Cancelled

    first, second = Ends(), Voter()
    with pytest.raises(Cancelled):
        votes_run(tmp_path / "cut", first)
    _, resumed = votes_run(tmp_path / "cut", second, resume=True)
    assert equal(whole, resumed)
    assert first.clicks + second.clicks == 8


def test_held_out_prompts_are_measured_by_what_votes_are_combined_with(tmp_path):
    votes, watched = load_votes(tmp_path / "taste", "best"), Brightness()
    parts = [WeightedReward(reward=votes), WeightedReward(reward=watched, weight=0.0)]
    voter = Voter()
    outcome, _ = votes_run(tmp_path, voter, CombinedReward(parts))
    assert voter.clicks == 8 and outcome.is_measured
    assert [row["rewards"].keys() for row in outcome.held_out] == [{"brightness"}] * 2
    assert isinstance(measurable(votes), NoReward) and measurable(watched) is watched
    left = measurable(BalancedReward(votes, watched))
    assert isinstance(left, CombinedReward) and list(left.parts) == ["brightness"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_while_sampling": True}, "score_while_sampling is true, but the reward votes"),
        ({"evaluate_every": 2}, "evaluate_every is 2, but the reward votes is not asked"),
        ({"ask": ASK}, "ask.every is 2 .* the reward votes contains no taste"),
    ],
)
def test_what_votes_cannot_do_is_refused_before_anything_is_made(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        votes_run(tmp_path, Voter(), **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("setting", "value"), [("clicks", 8), ("pictures", 8), ("kind", "stars")])
def test_settings_of_a_stop_without_a_stop_are_refused(tmp_path, setting, value):
    words = rf"ask\.{setting} is .*ask\.every is 0 and ask\.when_alarm is false.*votes: kind"
    with pytest.raises(ValueError, match=words):
        votes_run(tmp_path, Voter(), ask=AskConfig(**{setting: value}))
    assert not (tmp_path / "run").exists()
    AskConfig(when_alarm=True, **{setting: value}).check_used()


def test_an_answer_that_was_closed_is_refused_and_one_beside_it_is_not(tmp_path):
    taste = Taste(tmp_path)
    first, second = keep_batches(taste, torch.rand(4, 4, 4, 3), ["a", "a", "b", "b"])
    answer_in_words(taste, [first], "best: 1", closes=True)
    before = taste.picks()
    for text in ("best: 2", "", "skip", "undo"):
        with pytest.raises(AnswerClosed, match="these pictures was given already"):
            answer_in_words(taste, [first], text, closes=True)
    for text in ("best: 2", "stars: , 4, 5", "best: 3; liked: 1"):
        with pytest.raises(AnswerClosed, match=r"line [12]: the answer about picture [12] was"):
            answer_in_words(taste, [first, second], text, closes=False)
    assert taste.picks() == before
    answer_in_words(taste, [first, second], "stars: , , 4; best: 4", closes=True)
    assert [pick.kind for pick in taste.picks()[2:]] == ["stars", "best", "done"]


def test_several_processes_are_refused(tmp_path):
    class Two:
        count = 2

    with pytest.raises(ValueError, match="only a training of one process"):
        check_asking(load_votes(tmp_path), toy_config(), Two())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not know its picks: name their folder"):
        head = bright_taste(tmp_path).head
        save_head(head, tmp_path / "elsewhere" / "head.safetensors")
        far = load_taste(tmp_path / "elsewhere" / "head.safetensors")
        refit_run(tmp_path, Voter(), far)


def test_stop_and_keep_ends_the_waiting(tmp_path):
    wishes = []

    class Leaves(Voter):
        def __call__(self, question):
            if self.clicks >= 5:
                wishes.append(1)
                return False
            return super().__call__(question)

    outcome, _ = votes_run(tmp_path, Leaves(), wants_stop=lambda: bool(wishes))
    assert outcome.iterations == 2


def test_a_taste_is_fitted_again_to_all_clicks_and_its_gains_stay_paired(tmp_path):
    voter, asked, told = Voter(), [], []

    def hear(event):
        asked.extend([event.question] if isinstance(event, Asked) and event.question else [])
        told.extend([event] if isinstance(event, HeldOutEnd) else [])

    outcome, _ = refit_run(tmp_path, voter, listener=hear, evaluate_every=2, iterations=5)
    assert voter.clicks == 2 * 5
    assert [question.given for question in asked] == [0, 1, 2, 3, 4] * 2
    assert {(question.wanted, question.why) for question in asked} == {(5, "every 2 iterations")}
    assert [(event.iterations, event.refit) for event in told] == [(0, 0), (2, 2), (4, 4), (5, 4)]
    heads = [load_head(tmp_path / "run" / "refits" / f"iteration_00000{n}_1.safetensors")
             for n in (2, 4)]  # fmt: skip
    assert [head.report["picks"] for head in heads if head.report] == [PICKED + 5, PICKED + 10]
    # Base and LoRA were judged by the newest head, on the same noise.
    last, taste = told[-1], bright_taste(tmp_path / "again")
    newest = taste.of_file(tmp_path / "run" / "refits" / "iteration_000004_1.safetensors")
    pictures = outcome.after.images
    expected = newest.score(pictures, list(outcome.after.prompts)).values
    assert torch.equal(outcome.after.rewards[:, 0], expected)
    assert last.mean == pytest.approx(outcome.after.mean)
    gain = last.rewards["taste"]["gain"]
    assert gain == pytest.approx(outcome.after.mean - outcome.before.mean, rel=1e-5)


def test_a_taste_in_a_combination_is_fitted_again_too(tmp_path):
    both = BalancedReward(bright_taste(tmp_path), Brightness())
    voter = Voter()
    refit_run(tmp_path, voter, both, iterations=3)
    assert voter.clicks == 5
    assert (tmp_path / "run" / "refits" / "iteration_000002_1.safetensors").is_file()


def test_whoever_goes_on_without_a_word_keeps_the_head(tmp_path):
    taste = bright_taste(tmp_path)
    outcome, lora = refit_run(tmp_path, lambda question: True, taste, iterations=3)
    record = json.loads((tmp_path / "run" / "refits" / "iteration_000002.json").read_text())
    assert record["heads"] == [None] and outcome.held_out[-1]["refit"] == 0
    _, plain = votes_run(tmp_path / "plain", Voter(), taste, iterations=3)
    assert equal(lora, plain)


def test_a_head_that_was_fitted_again_elsewhere_meanwhile_does_not_keep_a_run_from_going_on(
    tmp_path,
):
    """As Fit Taste does when the graph runs again: the clicks of the run are there by then."""
    _, whole = refit_run(tmp_path / "whole", Voter())

    class Ends(Voter):
        def click(self, *args, **said):
            super().click(*args, **said)
            if self.clicks == 8:
                raise Cancelled

    first, second = Ends(), Voter()
    with pytest.raises(Cancelled):
        refit_run(tmp_path / "cut", first)
    mine, file = Taste(tmp_path / "cut" / "mine"), tmp_path / "cut" / "mine" / "head.safetensors"
    kept = tmp_path / "cut" / "run" / "refits" / "iteration_000000_1.safetensors"
    assert kept.read_bytes() == file.read_bytes()
    save_head(fit_taste(mine).head, file)
    assert kept.read_bytes() != file.read_bytes()
    _, resumed = refit_run(tmp_path / "cut", second, load_taste(file), resume=True)
    assert equal(whole, resumed) and first.clicks + second.clicks == 10
    assert read_record(tmp_path / "cut" / "run").reward_fingerprint["head"] == digest(kept)


def test_an_alarm_can_be_what_asks(tmp_path):
    """Two equal pictures of each group give no signal, whatever the taste."""
    ask = AskConfig(when_alarm=True, pictures=4, clicks=2)
    voter = Voter()
    settings = {"ask": ask, "iterations": 7, "checkpoint_every": 1}
    _, whole = refit_run(tmp_path / "whole", voter, Deaf(bright_taste(tmp_path)), **settings)
    assert {question.why for question in voter.questions} == {"alarm no-signal"}
    assert voter.clicks == 2
    first, second = Voter(), Voter()
    with pytest.raises(Cancelled):
        (tmp_path / "cut").mkdir()
        cut = {**settings, "check_cancel": CancelAfter(150)}
        refit_run(tmp_path / "cut", first, Deaf(bright_taste(tmp_path / "b")), **cut)
    reward = Deaf(load_taste(tmp_path / "b" / "mine" / "head.safetensors"))
    _, resumed = refit_run(tmp_path / "cut", second, reward, resume=True, **settings)
    assert equal(whole, resumed) and first.clicks + second.clicks == 2


class Deaf:
    """A taste that gives all pictures one number until it is fitted again."""

    name, fingerprint = "deaf", {}

    def __init__(self, taste):
        self.taste = taste

    def score(self, images, examples):
        batch = self.taste.score(images, examples)
        return type(batch).of(torch.zeros(len(images)) + 0.5 * (len(images) == 2) * batch.values)

    def check_refits(self):
        self.taste.check_refits()

    def refit(self, request, person):
        return self.taste.refit(request, person)

    def keep(self, file):
        self.taste.keep(file)

    def of_file(self, file):
        """Hear again once it was fitted; the first head is that of the start."""
        taste = self.taste.of_file(file)
        return Deaf(taste) if "000000" in file.name else taste


MOMENTS = {
    "after the third click": "clicks == 3",
    "when the second stop is half answered": "clicks == 8",
    "before the second head is written": "wrote('iteration_000004_1.safetensors', before=True)",
    "between the head and its record": "wrote('iteration_000004_1.safetensors')",
    "after the record": "wrote('iteration_000004.json')",
}
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import chunk_grpo_core.disk.atomic as atomic
import chunk_grpo_core.rewards.taste.head as head
import chunk_grpo_core.runs.refitting as refitting
import voters
from core.test_asking import refit_run
from chunk_grpo_core.rewards.taste.reward import load_taste

moment = sys.argv[2]
def end():
    os.kill(os.getpid(), signal.SIGKILL)
def write(path, body, write_whole=atomic.write_whole):
    wrote = lambda name, before=False: Path(path).name == name and before == is_before
    for is_before in (True, False):
        if "wrote" in moment and eval(moment, dict(wrote=wrote, is_before=is_before)):
            end()
        if is_before:
            write_whole(path, body)
head.write_whole = refitting.write_whole = write
class Dies(voters.Voter):
    def click(self, *args, **said):
        super().click(*args, **said)
        if "clicks" in moment and eval(moment, dict(clicks=self.clicks)):
            end()
folder = Path(sys.argv[1])
refit_run(folder, Dies(), load_taste(folder / "mine" / "head.safetensors"), checkpoint_every=3)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Rows and LoRA of the run that nobody kills."""
    voter = Voter()
    outcome, lora = refit_run(tmp_path_factory.mktemp("whole"), voter, checkpoint_every=3)
    assert voter.clicks == 10
    return without_seconds(outcome.rows), lora


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_run_that_was_killed_at_any_moment_of_a_stop_goes_on_to_the_same_lora(
    tmp_path, uninterrupted, moment
):
    rows, whole = uninterrupted
    here = Path(__file__).parents[1]
    bright_taste(tmp_path)
    command = [sys.executable, "-c", KILLED.format(tests=str(here)), str(tmp_path), moment]
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    died = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    given = sum(pick.kind == "duel" for pick in Taste(tmp_path / "mine").counting()) - PICKED
    again = Voter()
    reward = load_taste(tmp_path / "mine" / "head.safetensors")
    _, lora = refit_run(tmp_path, again, reward, checkpoint_every=3, resume=True)
    assert equal(whole, lora)
    assert given + again.clicks == 10
    assert without_seconds(read_metrics(tmp_path / "run" / "metrics.jsonl")) == rows
