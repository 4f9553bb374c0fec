from dlopt_helpers.chapters import step_costs as chapter
from dlopt_helpers.lab.measure import Ratio


def test_stored_costs_are_those_that_a_measurement_makes(monkeypatch):
    monkeypatch.setattr(chapter, "ratios", lambda a, b, repeats, calls: Ratio(2.0, 1.0, 3.0))
    monkeypatch.setattr(chapter, "_variants", lambda rule, own: {"default": own, "fused": own})
    made = chapter.step_costs("Adam", {"tiny": [(2, 3), (3,)]}, repeats=1)
    stored = chapter.stored_step_costs()
    assert [c for c in stored if c not in ("device", "date", "torch")] == list(made)
    assert set(stored.variant) == {"default", "foreach", "fused", "ours", "ours, compiled", "copy"}
    assert list(made.variant) == ["default", "fused", "copy"]
    assert list(made.rate) == [7 / 2 / 2.0, 7 / 2 / 2.0, 0.5]  # seven arrays, of which a copy moves two


def test_table_shows_each_row():
    stored = chapter.stored_step_costs()
    shown = chapter.table(stored)
    assert len(shown) == len(stored)
    assert shown.loc[("3 million", "fused"), "times the default's"].startswith(
        f"{stored.set_index(['network', 'variant']).default['3 million', 'fused']:.2g} ("
    )
