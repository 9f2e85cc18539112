"""A launch takes no less than its instructions, at four a cycle, and is likely to take what few warps issue."""

import dataclasses
import json

import pytest

from benchmarks.instructions import TABLE, of_step
from benchmarks.predict_step import configurations, step_of
from benchmarks.prediction.devices import DEVICES, H100, H200
from benchmarks.prediction.issue import Executed, executed, pace, resident
from benchmarks.prediction.timing import times, whole
from benchmarks.prediction.work import Launch, Use

LIMIT = 132 * 4 * 1.98e9  # instructions of warps a second


def launch(name, programs=13_200, size=0, flops=0):
    return Launch(name, f"{name}_kernel", programs, ((Use(f"x of {name}", size, size),),), flops)


def test_a_device_issues_four_instructions_in_a_cycle_of_each_processor():
    for device in DEVICES.values():
        assert device.instructions == pytest.approx(LIMIT)
    assert H100.memory < H200.memory
    assert H100.sustained < H100.memory


def test_registers_and_threads_say_how_many_warps_there_are():
    assert resident(Executed(1, warps=8, registers=255), H200) == 8  # one program
    assert resident(Executed(1, warps=8, registers=128), H200) == 16
    assert resident(Executed(1, warps=8, registers=129), H200) == 8  # of 136, which are given in eights
    assert resident(Executed(1, warps=4, registers=255), H200) == 8
    assert resident(Executed(1, warps=4, registers=32), H200) == 64
    assert resident(Executed(1, warps=1, registers=32), H200) == 32  # programs


def test_eight_warps_are_likely_to_issue_one_or_two_of_four():
    assert pace(8, H200) == (2, 1)
    assert pace(4, H200) == (1, 0.5)
    assert pace(16, H200) == (3, 2)
    assert all(best <= H200.issue for best, _ in (pace(warps, H200) for warps in range(1, 65)))


def test_instructions_are_a_limit_launch_by_launch():
    step = [launch("a"), launch("torch's own")]
    counts = {"a": Executed(int(LIMIT * 1e-6), warps=8, registers=255)}
    for models in (1, 3):
        found = times(step, "tf32", H200, counts, models)
        assert found[0].seconds == pytest.approx(H200.launch + models * 1e-6)
        assert found[0].likely == pytest.approx((H200.launch + models * 2e-6, H200.launch + models * 4e-6))
        assert found[1].likely == pytest.approx((H200.launch, H200.launch))
        of_step = whole(found)
        assert of_step.seconds == pytest.approx(2 * H200.launch + models * 1e-6)
        assert of_step.likely == pytest.approx((2 * H200.launch + models * 2e-6, 2 * H200.launch + models * 4e-6))
    assert whole(times(step, "tf32")).likely is None


def test_few_programs_issue_on_few_processors_and_have_few_warps():
    one = Executed(int(LIMIT * 1e-6), warps=4, registers=128)
    few, many = (times([launch("a", programs)], "tf32", H200, {"a": one})[0] for programs in (66, 13_200))
    assert few.seconds == pytest.approx(H200.launch + 2e-6)
    assert few.bound == "launch"
    assert few.likely[0] == pytest.approx(H200.launch + 4 * 2e-6)  # 4 warps: one instruction in a cycle
    assert many.likely[0] == pytest.approx(H200.launch + 4 / 3 * 1e-6)  # 16


def test_the_shared_memory_and_repeated_products_are_limits():
    useful = launch("a", flops=494_500_000)  # a microsecond of tf32
    one = Executed(0, products=989_000_000)
    found = times([useful], "tf32", H200, {"a": one})[0]
    assert found.parts["products"] == pytest.approx(2e-6)
    assert times([useful], "tf32", H200, {"a": one._replace(products=1)})[0].parts["products"] == pytest.approx(1e-6)
    mixed = dataclasses.replace(useful, bf16=1)  # what is repeated may be of the faster ones
    assert times([mixed], "tf32", H200, {"a": one})[0].parts["products"] == pytest.approx(1.5e-6, rel=1e-3)
    in_a_microsecond = 132 * 128 * 1980
    for programs, whose, taken in ((13_200, "", 3e-6), (66, "one processor's ", 6e-6)):
        counted = {"a": Executed(0, shared=in_a_microsecond)}
        found = times([launch("a", programs)], "tf32", H200, counted, models=3)[0]
        assert found.parts[f"{whose}shared memory"] == pytest.approx(taken)
        assert found.seconds == pytest.approx(H200.launch + taken)


def test_memory_is_likely_to_be_slower_than_its_datasheet():
    counts = {"a": Executed(1)}
    found = times([launch("a", size=480_000_000)], "tf32", H200, counts)
    assert whole(found).likely == pytest.approx((H200.launch + 100e-6, H200.launch + 480 / 3.9 * 1e-6))


def test_counts_are_matched_kernel_by_kernel_in_their_order(tmp_path):
    step = [launch("a", flops=8), launch("torch's"), Launch("a again", "a_kernel", 5, ((),)), launch("b")]
    rows = [["b_kernel", 3, 4, 70], ["a_kernel", 3, 8, 10], ["a_kernel", 3, 4, 20], ["other_kernel", 1, 1, 1]]
    (tmp_path / "counts.json").write_text(json.dumps({"steps": {"nanda, 256, tf32": rows}}))
    for models in (64, 256, 1024):
        found = executed("nanda", models, "tf32", step, tmp_path / "counts.json")
        assert found == {"a": Executed(10, 8, 255), "a again": Executed(20, 4, 112), "b": Executed(70, 4, 112)}
    assert executed("nanda", 1, "tf32", step, tmp_path / "counts.json") == {}
    assert executed("nanda", 256, "tf32", step, tmp_path / "none.json") == {}


@pytest.mark.parametrize("name", ["nanda", "p = 97 MLP"])
def test_every_launch_of_the_recipes_is_counted(name):
    step = step_of(configurations()[name], 256, "tf32")
    counted = of_step(name, 256, "tf32", TABLE)
    assert counted
    found = executed(name, 256, "tf32", step)
    assert len(found) == len(counted)
    assert found.keys() == {one.name for one in step if one.kernel}
    by_name = {one.name: one for one in step}
    for one in counted:  # the programs that are predicted are those that were executed, model by model
        if one.kernel == "update_kernel":  # whose programs take all models' numbers together
            continue
        assert any(256 * one.programs == by_name[of].programs for of in found if by_name[of].kernel == one.kernel)
