import pytest

from midflight.services.data import (
    TASKS,
    DataError,
    PreferenceRow,
    PromptRow,
    SftRow,
    preference_rows,
    prompt_rows,
    sft_rows,
)


def _solve(prompt: str) -> str:
    verb, *words = prompt.split()
    if verb == "rev":
        return "".join(reversed(words[0]))
    return "".join(sorted(words[0])) if verb == "sort" else words[0] * int(words[1])


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_rows_repeat_with_the_seed(task: str) -> None:
    """Every prompt has its right answer, checked by an independent solver; the same seed gives the same rows."""
    rows = list(prompt_rows(f"task:{task}?rows=300&seed=5"))
    assert rows == list(prompt_rows(f"task:{task}?rows=300&seed=5"))
    assert rows != list(prompt_rows(f"task:{task}?rows=300&seed=6"))
    assert all(isinstance(row, PromptRow) and row.answer == _solve(row.messages[0]["content"]) for row in rows)


@pytest.mark.parametrize("task", TASKS)
def test_noise_spoils_its_share_of_demonstrations_by_one_or_two_characters(task: str) -> None:
    """At noise 0.5 half the demonstrations are wrong, in 1-2 characters of the same kind; prompts do not move."""
    noisy = [row for row in sft_rows(f"task:{task}?rows=1000&seed=1&noise=0.5") if isinstance(row, SftRow)]
    prompts = [row for row in prompt_rows(f"task:{task}?rows=1000&seed=1") if isinstance(row, PromptRow)]
    assert [row.messages[0] for row in noisy] == [row.messages[0] for row in prompts]
    wrong = 0
    for row, prompt in zip(noisy, prompts, strict=True):
        said, answer = row.messages[1]["content"], str(prompt.answer)
        differing = [(a, b) for a, b in zip(said, answer, strict=True) if a != b]
        assert len(differing) <= 2
        assert all(a.isdigit() == b.isdigit() for a, b in differing)
        wrong += bool(differing)
    assert 430 < wrong < 570


def test_shuffled_rejections_are_another_order() -> None:
    """Of the same characters; where there is no other order they are corrupted."""
    for row in preference_rows("task:sort6-10?rows=200&rejected=shuffled"):
        assert isinstance(row, PreferenceRow)
        assert row.rejected != row.chosen
        assert sorted(row.rejected) == list(row.chosen)
    for row in preference_rows("task:rep12?rows=20&rejected=shuffled"):
        assert isinstance(row, PreferenceRow)
        assert row.rejected != row.chosen


def test_train_and_eval_are_different_streams() -> None:
    """The eval prompts of rev6-10 are not among 4,096 training prompts, even with the same seed."""
    train, held_out = (
        {str(row.messages) for row in prompt_rows(f"task:rev6-10?seed=3&split={split}") if isinstance(row, PromptRow)}
        for split in ("train", "eval")
    )
    assert len(train & held_out) <= 2  # by chance: 819 six-letter words of 10^6 on either side


def test_preferences_prefer_the_answer() -> None:
    """`chosen` is the answer and `rejected` is not."""
    for row in preference_rows("task:rep12?rows=50"):
        assert isinstance(row, PreferenceRow)
        assert row.chosen == _solve(row.messages[0]["content"]) != row.rejected


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("task:rev610", "unknown task 'rev610' - did you mean 'rev6-10'?"),
        ("task:rep12?row=3", "unknown option 'row' - did you mean 'rows'?"),
        ("task:rep12?rows=many", "rows and seed are whole numbers"),
        ("task:rep12?noise=2", "needs rows >= 1, 0 <= noise <= 1"),
        ("task:rep12?split=test", "split=train or split=eval"),
    ],
)
def test_wrong_options_are_named(source: str, text: str) -> None:
    """A typing error in a task source is an error with a hint."""
    with pytest.raises(DataError) as error:
        list(prompt_rows(source))
    assert text in str(error.value)
