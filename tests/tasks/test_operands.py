"""Where operands stand, and which data are sums."""

import pytest

from grokfast.tasks import GroupTask, ModularTask, ParityTask, RecurrenceTask
from grokfast.tasks.operands import operand_columns, sign_of_sum


@pytest.mark.parametrize(("layout", "columns"), [("pair", [0, 1]), ("equals", [0, 1]), ("operator", [0, 2])])
def test_operands_are_the_tokens_that_change(layout, columns):
    assert operand_columns(ModularTask(p=7, layout=layout).build()) == columns


def test_sums_and_differences_are_known_by_their_answers():
    assert sign_of_sum(ModularTask(p=7, label_noise=0.5).build()) == 1
    assert sign_of_sum(ModularTask(p=7, operation="sub").build()) == -1
    assert sign_of_sum(ModularTask(p=7, operation="a+6*b").build()) == -1
    assert sign_of_sum(GroupTask(group="C7").build()) == 1


@pytest.mark.parametrize("task", [ModularTask(p=7, operation="mul"), GroupTask(group="S3"), ModularTask(p=5, p_b=7)])
def test_other_answers_are_told(task):
    with pytest.raises(ValueError, match=r"task must be a \+ b or a - b mod p, the answers to 0"):
        sign_of_sum(task.build())


@pytest.mark.parametrize(
    "task", [ParityTask(), ModularTask(p=5, n_operands=3), RecurrenceTask(p=5, coefficients=(1, 1, 1))]
)
def test_other_inputs_are_told(task):
    with pytest.raises(ValueError, match="task must ask one answer to two operands, got inputs"):
        operand_columns(task.build())
