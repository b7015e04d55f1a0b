"""POOLALLOC_TEST_SEGMENTS=1 runs the engine tests once more with memory in whole segments.

What a test says of pages, mappings or their driver calls does not hold there; those are listed here with the reason.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from poolalloc import _core

FORCED = os.environ.get("POOLALLOC_TEST_SEGMENTS", "") not in ("", "0")

_COUNTS_PAGES = "counts pages where a segment holds several"
_SHARES_PAGES = "pages that move between places or streams one by one: a segment goes as a whole, or stays"
_CALLS = "refuses or counts driver calls of virtual memory management, which segments do not make"
_HISTORY = "that holes cost nothing is what segments cannot promise"
_FITS = "what could leave is told as the largest block that fits; a hole in a segment that stays may be larger"
_AHEAD = "memory is created ahead in pages alone"
_SURPLUS = "what is kept stays until memory runs out: what it leaves in a segment fits few requests"
_ROOM = "sized for a device where every idle page serves every request"

OTHERWISE_WITH_SEGMENTS = {
    "test_a_freed_block_serves_the_next_request_of_its_size_and_no_other": _COUNTS_PAGES,
    "test_a_stream_takes_its_surplus_before_it_grows_and_not_what_was_made_ahead": _SURPLUS,
    "test_small_blocks_take_it_too": _SURPLUS,
    "test_growth_that_is_allowed_comes_first": _SURPLUS,
    "test_idle_memory_of_other_streams_goes_first": _SURPLUS,
    "test_only_what_is_missing_is_released": _ROOM,
    "test_nothing_kept_leaves_a_stream_while_a_graph_is_captured": _ROOM,
    "test_emptying_the_cache_and_trimming_take_it_last": _COUNTS_PAGES,
    "test_trimming_that_waits_takes_what_work_still_uses": _COUNTS_PAGES,
    "test_a_lower_limit_takes_it": _COUNTS_PAGES,
    "test_a_plan_has_its_requests_and_exact_bins_what_it_misses": "there are no plans with segments",
    "test_pages_taken_from_another_stream_have_no_work_left": _SHARES_PAGES,
    "test_no_two_live_blocks_share_physical_memory": "expects pages to be shared over time",
    "test_a_refused_call_leaves_nothing_changed": _CALLS,
    "test_addresses_that_run_out_are_an_error_and_not_the_end": _CALLS,
    "test_a_growing_cache_holds_no_more_than_its_live_pages": _HISTORY,
    "test_a_shifting_pattern_holds_no_more_than_its_live_pages": _HISTORY,
    "test_empty_cache_leaves_only_what_live_blocks_need": _COUNTS_PAGES,
    "test_a_fraction_below_what_is_held_takes_only_what_is_idle": _COUNTS_PAGES,
    "test_each_rung_alone": _SHARES_PAGES,
    "test_the_first_rung_that_has_memory_serves": _ROOM,
    "test_what_was_asked_once_is_known_the_next_time": _SHARES_PAGES,
    "test_what_a_stream_left_after_that_is_asked_for_anew": _SHARES_PAGES,
    "test_idle_pages_of_other_streams_come_before_frees_that_have_to_be_waited_for_longest": _SHARES_PAGES,
    "test_the_pool_is_searched_again_after_each_wait": _SHARES_PAGES,
    "test_a_driver_that_fails_for_another_reason_is_no_out_of_memory": _CALLS,
    "test_blocks_scattered_over_streams_and_pools_are_all_gathered": _ROOM,
    "test_a_pool_that_lives_long_does_not_run_out_of_addresses": "segments use up no addresses",
    "test_totals_only_grow": _COUNTS_PAGES,
    "test_streams_and_pools_are_told_apart": _COUNTS_PAGES,
    "test_pages_are_counted_as_they_come_and_go": _COUNTS_PAGES,
    "test_one_block_through_its_life": _COUNTS_PAGES,
    "test_peaks_are_the_most_there_ever_was_until_they_are_reset": _COUNTS_PAGES,
    "test_driver_calls_are_those_of_the_process": _CALLS,
    "test_aliased_pages_are_counted_with_their_mappings": "counts aliases, which there are none of",
    "test_a_pool_without_blocks_gives_back_its_addresses_too": _CALLS,
    "test_a_driver_that_refuses_is_a_driver_error_and_changes_nothing": _CALLS,
    "test_an_unused_device_has_nothing_anywhere": _COUNTS_PAGES,
    "test_the_model_shows_what_lies_under_an_address": _COUNTS_PAGES,
    "test_only_the_streams_of_the_filter_go_to_the_pool": _COUNTS_PAGES,
    "test_the_error_gives_every_figure": _FITS,
    "test_the_block_said_to_fit_does_fit_and_the_next_page_does_not": _FITS,
    "test_no_more_goes_than_the_target_takes": _COUNTS_PAGES,
    "test_everything_idle_goes_and_the_device_sees_it": _COUNTS_PAGES,
    "test_a_limit_below_what_is_live_stops_growth_until_enough_was_freed": "a segment has room for more blocks",
    "test_memory_asked_for_ahead_is_there_at_the_first_use_and_growth_makes_none": _AHEAD,
    "test_part_of_a_page_is_a_page": _AHEAD,
    "test_what_cannot_be_had_is_said_and_nothing_is_kept": _AHEAD,
    "test_a_reserve_is_made_and_made_again_within_the_limit": _AHEAD,
    "test_idle_memory_that_graphs_may_touch_is_told_apart_and_not_promised": _FITS,
    "test_a_refusal_while_memory_is_free_is_no_shortage": _CALLS,
    "test_a_refusal_near_the_end_of_memory_is_a_shortage": _CALLS,
    "test_routing_is_not_capturing": _COUNTS_PAGES,
    "test_threads_that_do_not_capture_get_idle_memory_of_others": _SHARES_PAGES,
    "test_a_child_of_fork_does_without_the_thread": _AHEAD,
    "test_too_much_idle_memory_goes_down_to_the_low_mark": _COUNTS_PAGES,
    "test_the_thread_never_goes_below_what_was_allocated_ahead": _COUNTS_PAGES,
    "test_what_has_been_idle_for_long_goes_and_what_is_used_stays": _COUNTS_PAGES,
    "test_spare_pages_grow_old_as_well": _COUNTS_PAGES,
    "test_the_thread_leaves_a_capture_alone": _COUNTS_PAGES,
    "test_it_is_called_again_as_long_as_it_frees": "a segment has room for more blocks",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not FORCED:
        return
    for item in items:
        reason = OTHERWISE_WITH_SEGMENTS.get(getattr(item, "originalname", item.name))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"segments: {reason}"))


if FORCED:

    class _Segmented(_core.Engine):
        def __init__(self, conf: str = "", model: dict[str, int] | None = None, plan: Any = None) -> None:
            super().__init__(f"segments:true,{conf}" if conf.strip() else "segments:true", model or {}, plan)

    _Segmented.__name__ = "Engine"
    _core.Engine = _Segmented  # type: ignore[misc]
