import dataclasses

import pytest

from finelab import LabError
from finelab.machine import Hardware, decide
from finelab.recipe import override

GIB = 2**30
CPU = Hardware("cpu", "some processor", "Linux", 8, 16 * GIB)
CPU_BF16 = dataclasses.replace(CPU, cpu_bfloat16=True)
TURING = Hardware("cuda", "RTX 2060 SUPER", "Windows", 8, 16 * GIB, 8 * GIB, (7, 5))
AMPERE = Hardware("cuda", "RTX 3070", "Linux", 8, 16 * GIB, 8 * GIB, (8, 6))


@pytest.mark.parametrize(
    ("hardware", "dtype", "load_in_4bit", "checkpointing"),
    [
        (CPU, "float32", False, False),
        (CPU_BF16, "bfloat16", False, False),
        (TURING, "float16", True, "unsloth"),
        (AMPERE, "bfloat16", True, "unsloth"),
    ],
)
def test_the_machine_dictates(preset, hardware, dtype, load_in_4bit, checkpointing):
    profile = decide(hardware, preset)
    assert profile.dtype == dtype
    assert profile.bf16 == (dtype == "bfloat16")
    assert profile.fp16 == (dtype == "float16")
    assert profile.load_in_4bit is load_in_4bit
    assert profile.use_gradient_checkpointing == checkpointing


def test_windows_gets_one_data_worker_and_is_told_why(preset):
    profile = decide(TURING, preset)
    assert profile.dataset_num_proc == 1
    assert "spawn" in profile.decisions["dataset_num_proc"].reason


def test_every_setting_is_described_with_its_reason(preset):
    text = decide(TURING, preset).describe()
    assert "compute capability 7.5 has no bfloat16" in text
    assert len(text.splitlines()) == len(decide(TURING, preset).decisions)


def test_the_environment_overrides_and_dtype_takes_autocast_along(preset):
    profile = decide(CPU_BF16, preset, "dtype=float32, load_in_4bit=true")
    assert (profile.dtype, profile.bf16, profile.load_in_4bit) == ("float32", False, True)
    assert profile.decisions["dtype"].reason == "set by FINELAB_MACHINE"


def test_what_unsloth_would_not_do_on_a_card_is_refused_before_the_download(preset):
    packed = override(preset, ["model.load_in_4bit=true", "lora.init_lora_weights=pissa"])
    with pytest.raises(LabError, match=r"'pissa' starts from the base's own weights.*load_in_4bit=false"):
        decide(TURING, packed)
    assert decide(CPU, packed).load_in_4bit is False
    with pytest.raises(LabError, match="dtype=float32: Unsloth trains in bfloat16 on"):
        decide(AMPERE, preset, "dtype=float32")
    assert decide(TURING, preset, "dtype=float32").dtype == "float32"


@pytest.mark.parametrize("override", ["dtype=bfloat16", "bf16=true", "merge_dtype=bfloat16"])
def test_bfloat16_is_refused_on_a_card_that_has_none(preset, override):
    with pytest.raises(LabError, match="RTX 2060 SUPER has no bfloat16; take dtype=float16 or"):
        decide(TURING, preset, override)


@pytest.mark.parametrize("override", ["", "dtype=float32"])
def test_a_card_without_bfloat16_merges_in_float16_whatever_it_trains_in(preset, override):
    assert decide(TURING, preset, override).merge_dtype == "float16"


@pytest.mark.parametrize(
    "text",
    [
        *("dtyp=float32", "dtype", "dtype=float8", "load_in_4bit=no", "fast_cpu_step=0"),
        *("use_gradient_checkpointing=off", "dataset_num_proc=two", "dataset_num_proc=true"),
        *("processes=0", "processes=3", "processes=true", "processes=two"),
    ],
)
def test_a_wrong_override_is_refused(preset, text):
    with pytest.raises(LabError, match="FINELAB_MACHINE"):
        decide(CPU, preset, text)


def test_an_unknown_setting_is_an_attribute_error(preset):
    with pytest.raises(AttributeError):
        decide(CPU, preset).nonsense  # noqa: B018


def test_this_machine_is_read_and_kept_in_the_evidence(run):
    profile = run.profile()
    kept = run.evidence()["machine"]
    assert kept["memory_bytes"] > GIB
    assert kept["versions"]["torch"]
    assert kept["profile"]["dtype"] == profile.dtype


@pytest.mark.parametrize("change", ["lora.lora_dropout=0.1", "lora.use_dora=true"])
def test_what_the_step_by_hand_does_not_know_is_left_to_autograd(preset, change):
    assert decide(CPU, preset).fast_cpu_step
    decision = decide(CPU, override(preset, [change])).decisions["fast_cpu_step"]
    assert (decision.value, "without dropout or DoRA" in decision.reason) == (False, True)


@pytest.mark.parametrize(
    ("threads", "tiles", "changes", "processes"),
    [
        (1, True, [], 1),
        (2, True, [], 2),
        (8, True, [], 2),
        (8, False, [], 1),
        (8, True, ["training.fast_cpu_step=false"], 1),
        (8, True, ["lora.use_dora=true"], 1),
    ],
)
def test_a_second_process_helps_the_step_by_hand_on_tiles_where_torch_has_several_threads(
    preset, threads, tiles, changes, processes
):
    hardware = dataclasses.replace(CPU, threads=threads, cpu_bfloat16=True, cpu_tiles=tiles)
    assert decide(hardware, override(preset, changes)).processes == processes
    assert decide(hardware, override(preset, changes), "processes=1").processes == 1
    assert decide(hardware, override(preset, changes), "dtype=float32").processes == 1
