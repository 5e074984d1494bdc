"""The README's file tree and numbers are true."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULT = ROOT / "benchmarks" / "results" / "main_job_float32.json"
IGNORED = {"runs"}  # in the tree, but made by the lab


def tree():
    """The paths of the README's file tree, folders ending in a slash."""
    block = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    stack, found = [], set()
    for line in block.splitlines():
        match = re.match(r"( *)(\S+)", line)
        depth = len(match[1]) // 2
        stack = [*stack[:depth], match[2]]
        found.add("".join(stack))
    return found


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_everything_in_the_tree_exists():
    for path in tree():
        if path.strip("/").partition("/")[0] not in IGNORED:
            assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_part_is_in_the_tree():
    """The top level, and what lies directly in finelab/ and notebooks/."""
    wanted = set()
    for path in tracked():
        for parent in ("", "finelab/", "notebooks/"):
            if path.as_posix().startswith(parent):
                first, slash, _ = path.as_posix().removeprefix(parent).partition("/")
                wanted.add(parent + first + slash)
    hidden = {name for name in wanted if name.startswith(".") or name.endswith("__init__.py")}
    assert wanted - hidden <= tree()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_inside_the_repo_resolve(link):
    assert link.startswith("https://") or (ROOT / link).exists()


def test_the_measured_numbers_are_those_of_the_result_file():
    details = json.loads(RESULT.read_text(encoding="utf-8"))["details"]
    training, evaluation = details["training"], details["evaluation"]
    minutes, seconds = divmod(round(details["wall_s"]), 60)
    low, high = evaluation["interval"]
    families, tables = evaluation["families"], evaluation["by_source"]["table-lookup"]
    errors = {name: 100 * share for name, share in details["plan"]["error"].items()}
    for said in (
        f"{minutes} min {seconds:02} s",
        f"{details['peak_memory_bytes'] / 1e9:.1f} GB",
        f"{training['steps']} steps",
        f"{training['tokens_per_s']:.0f} tokens/s",
        f"{details['data']['train_rows']} conversations",
        f"{evaluation['heldout_nll_base']:.3f} → {evaluation['heldout_nll_tuned']:.3f}",
        f"{evaluation['difference']:+.3f} ({low:+.3f} to {high:+.3f})",
        f"{families['heldout_nll_base']:.3f} → {families['heldout_nll_tuned']:.3f}",
        f"{tables['base']:.3f} → {tables['tuned']:.3f}",
        *answers(evaluation["answers"]),
        "time {seconds:+.1f} %, peak memory {peak_memory_bytes:+.1f} %".format(**errors),
    ):
        assert said in README, said


def answers(found):
    rows = found["not_exact"]["rows"]
    for name in ("not_exact", "result_not_stated"):
        right = (round(rows * (1 - found[name][model])) for model in ("base", "tuned"))
        yield " → ".join(map(str, right)) + f": {found[name]['verdict']} |"


def test_what_the_merge_costs_is_that_of_its_result_file():
    found = json.loads(RESULT.with_name("merged_dtype.json").read_text(encoding="utf-8"))["details"]
    adapter, bfloat16, float16 = (found[name]["row"] for name in ("adapter", "base", "float16"))
    for each, kept in ((adapter, ""), (bfloat16, " and keeps {:.0%} of"), (float16, " and {:.1%} (")):
        moved = f"{each['base']:.3f} → {each['tuned']:.3f}"
        assert moved + kept.format(each["kept"]).replace("%", " %") in README


def test_what_the_job_took_with_bfloat16_is_that_of_its_result_file():
    details = json.loads(RESULT.with_name("main_job.json").read_text(encoding="utf-8"))["details"]
    minutes, seconds = divmod(round(details["wall_s"]), 60)
    evaluation = details["evaluation"]
    moved = f"{evaluation['heldout_nll_base']:.3f} → {evaluation['heldout_nll_tuned']:.3f}"
    assert f"bfloat16 (AVX-512) took {minutes} min {seconds:02} s, for {moved}" in README


def seconds(found, kind):
    return [found["seconds"][f"{kind}, {processes}"] for processes in (1, 2)]


def gigabytes(found, *names):
    return [f"{found['runs'][name]['peak_memory_bytes'] / 1e9:.1f}" for name in names]


def data(found, ratios):
    one, two = seconds(found, "ours")
    yield f"takes {one:.1f} s for {found['rows']:,} real conversations in one process and {two:.1f} s in two"
    faster = [ratios[f"TRL, {processes}"] for processes in ("1 process", "2 processes")]
    yield "{:.1f} and {:.1f} times as fast as TRL's own".format(*faster)


def shards(found, ratios):
    million = found["sizes"]["1000000"]
    yield f"a million conversations took {million['peak_memory_bytes'] / 1e9:.2f} GB at most"


def used(found, *names):
    return [int(100 * found["limit_share"][name] + 0.5) for name in names]


def train(found, ratios):
    ours = found["runs"]["ours"]
    yield f"{ours['trained_tokens_per_s']:.0f} trained tokens a second: {ratios['trl']:.1f} times"
    yield f"{ratios['unsloth']:.1f} times as many as Unsloth's CPU backend"
    yield f"and {ratios['litgpt']:.1f} times as many as LitGPT"
    sizes = gigabytes(found, "ours", "trl", "unsloth", "litgpt")
    yield "takes {} GB where they take {}, {} and {}".format(*sizes)
    off = found["largest_loss_difference_from_float32_over_the_first_8_steps"]
    yield f"within {off['ours']} nats of float32's, theirs within {off['trl']} (TRL) and {off['unsloth']} "
    shares = used(found, "ours", "unsloth", "litgpt", "trl")
    yield "it used {} %, Unsloth {} %, LitGPT {} % and TRL {} %".format(*shares)


def train_tiles(found, ratios):
    made = found["runs"]["ours"]["trained_tokens_per_s"]
    yield f"the step makes {made:.0f} trained tokens a second: {ratios['trl']:.1f} times as many as TRL"
    yield f"{ratios['unsloth']:.1f} times as many as Unsloth and {ratios['litgpt']:.1f} times as many as"
    sizes = gigabytes(found, "ours", "trl", "unsloth", "litgpt")
    yield "LitGPT, in {} GB where they take {}, {} and {}".format(*sizes)
    names = "ours", "unsloth", "trl", "litgpt"
    limits = (f"{found['runs'][name]['limit_flops_per_s'] / 1e9:,.0f}" for name in names)
    yield "{} GFLOP/s beside our run, {} beside Unsloth's, {} beside TRL's and {} beside".format(*limits)
    off = found["largest_loss_difference_from_float32_over_the_first_8_steps"]["ours"]
    yield f"within {off} nats of float32's over the first 8 steps ([train_tiles.json]"


def train_float32(found, ratios):
    ours = found["runs"]["ours"]
    yield f"{ours['trained_tokens_per_s']:.0f} trained tokens a second there: {ratios['trl']:.1f}"
    assert f"{ratios['unsloth']:.1f}" == f"{ratios['litgpt']:.1f}"
    yield f"{ratios['unsloth']:.1f} times as many as Unsloth and as LitGPT"
    sizes = gigabytes(found, "ours", "trl", "unsloth", "litgpt")
    yield "in {} GB where they take {}, {} and {}".format(*sizes)
    shares = used(found, "ours", "litgpt", "unsloth", "trl")
    yield "ours used {} %, LitGPT {} %, Unsloth {} % and TRL {} %".format(*shares)
    yield f"{found['limit_share']['ours'] / found['limit_share']['trl']:.1f} times TRL"


def plan(found, ratios):
    errors = [plan["error"]["seconds"] for plans in found["recipes"].values() for plan in plans]
    assert len(errors) == 3 * len(found["recipes"])
    assert max(errors) > -min(errors)
    yield f"single runs took up to {100 * max(errors):.0f} % longer"
    largest = found["largest_median_error"]
    time, memory = largest["seconds"], largest["peak_memory_bytes"]
    assert time <= 0.10 and memory <= 0.15  # what the lab promises
    yield f"are at most {100 * time:.1f} % in time and {100 * memory:.1f} % in peak memory"


def calibration(found, ratios):
    tries = found["simulations"]
    yield f"{tries - found['false_alarms']['resampled']} of {tries} tries"


def latency(found, ratios):
    gone, stop, speech, sound, task = (each["most_s"] for each in found["waits"].values())
    yield f"idle {gone:.1f} s after a client had gone and {stop:.1f} s after the page's Stop"
    yield f"ended speech within {1000 * speech:.0f} ms and its sound within {1000 * sound:.0f} ms"
    yield f"busy for longer than {1000 * task:.0f} ms while an answer streamed"


@pytest.mark.parametrize(
    "sentences",
    [data, shards, plan, train, train_tiles, train_float32, calibration, latency],
    ids=lambda each: each.__name__,
)
def test_what_a_benchmark_measured_is_what_the_readme_says(sentences):
    result = json.loads(RESULT.with_name(f"{sentences.__name__}.json").read_text(encoding="utf-8"))
    readme = " ".join(README.split())
    for said in sentences(result["details"], result["ratios"]):
        assert said in readme, said


def test_the_tables_of_models_and_times_are_those_of_their_sources():
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report["renewed"](readme) == readme
