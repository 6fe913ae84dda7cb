#!/usr/bin/env bash
# Plants each bug of mutants.rs in turn and sees that the crash explorer finds it, and those below, which
# other tests find. The flag that lets bugs be planted is for this project's own crates: what they depend on is as
# built before.
#   AVHDX_ONLY  a part of the names of those to look at
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:-target}"
RUSTC_WORKSPACE_WRAPPER="$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/rustc-with-bugs"
printf '#!/bin/sh\nexec "$@" --cfg avhdx_mutants\n' >"$RUSTC_WORKSPACE_WRAPPER"
chmod +x "$RUSTC_WORKSPACE_WRAPPER"
export RUSTC_WORKSPACE_WRAPPER
cargo test --locked --test crash -- --ignored --nocapture every_mutant_is_found

# The tests that were seen to pass without a bug.
declare -A sound=()

# hunt NAME TARGET TEST: what the bug is called in src/, and which test finds it: of that file, or of the crate
# itself (lib).
hunt() {
  [[ $1 == *"${AVHDX_ONLY:-}"* ]] || return 0
  local target=(--test "$2")
  [[ $2 == lib ]] && target=(--lib)
  local test=(cargo test --locked "${target[@]}" -- --exact "$3")
  [[ -n ${sound[$2 $3]:-} ]] || "${test[@]}" >/dev/null
  sound[$2 $3]=yes
  if AVHDX_MUTANT=$1 "${test[@]}" >/dev/null 2>&1; then
    echo "not found: $1"
    exit 1
  fi
  printf '%-34s found by %s of %s\n' "$1" "$3" "$2"
}
hunt readers-not-waited-for threads held::space_is_not_given_away_under_a_reader
hunt length-taken-back threads held::of_two_growing_writers_none_hides_the_length_of_the_other
hunt plan-does-not-pin threads plans::a_plan_keeps_what_it_names_from_all_others_until_it_is_dropped
hunt late-answer-kept threads held::what_was_found_out_before_a_write_is_not_remembered_after_it
hunt answer-outlives-change flat what_is_written_shows_at_once
hunt damage-not-refused space a_write_does_not_take_the_place_of_a_block_that_was_lost
hunt second-region-table-ignored space regions_of_either_table_are_claimed
hunt freed-space-forgotten-at-close space space_given_up_before_a_close_is_used_again_after_it
hunt grown-blocks-not-foreseen accept_loss blocks_that_the_file_grows_for_need_their_space_too
hunt states-not-looked-at live unsound::a_merge_is_refused_where_partially_present_blocks_have_no_sector_bitmap
hunt states-not-looked-at live unsound::a_merge_is_refused_where_a_block_is_in_a_state_that_means_nothing
hunt room-for-marks-not-foreseen live unsound::a_merge_is_refused_where_the_metadata_has_no_room_for_its_marks
hunt room-for-marks-not-foreseen live unsound::a_merge_is_refused_where_what_is_said_of_the_disk_is_more_than_the_log_takes
hunt asked-too-far-ahead live foreseen::a_merge_is_foreseen_with_few_looks_at_its_tables
hunt nobody-heard-meanwhile live foreseen::a_merge_may_be_stopped_while_it_is_foreseen
hunt states-not-looked-at live unsound::a_merge_of_a_disk_of_no_bytes_is_refused
hunt room-for-marks-not-foreseen live unsound::a_merge_is_refused_where_the_layer_above_has_no_room_for_the_way_to_the_parent
crashes=write::crashes
hunt metadata-in-two-entries lib $crashes::an_edit_of_the_metadata_is_whole_or_not_there
hunt metadata-parted lib $crashes::an_edit_that_shares_its_commit_with_many_pages_is_whole_or_not_there
hunt size-with-changes-before lib $crashes::a_resize_after_many_changes_leaves_a_disk_of_the_one_size_or_the_other
hunt smaller-size-with-changes-before lib $crashes::a_resize_after_many_changes_leaves_a_disk_of_the_one_size_or_the_other
hunt identity-kept-when-handed-out lib $crashes::an_identity_that_is_known_is_of_one_disk_whatever_a_crash_leaves
hunt size-before-zero-blocks lib $crashes::a_resize_leaves_a_disk_of_the_one_size_or_the_other
hunt rest-of-block-not-marked lib write::tests::a_disk_of_another_size_holds_the_same_bytes_and_zeros_behind_them
hunt blocks-cleared-before-size lib $crashes::a_resize_leaves_a_disk_of_the_one_size_or_the_other
hunt zero-blocks-before-size lib $crashes::a_resize_leaves_a_disk_of_the_one_size_or_the_other
hunt blocks-cleared-after-size lib $crashes::a_resize_leaves_a_disk_of_the_one_size_or_the_other
hunt failed-mirror-forgotten live busy::a_write_that_the_parent_refuses_fails_the_merge_and_not_the_writer
hunt region-table-before-new-bat lib $crashes::a_resize_that_moves_the_table_leaves_a_disk_of_the_one_size_or_the_other
hunt one-region-table-left lib write::tests::a_table_that_gets_too_long_moves_with_the_size
hunt readers-of-old-stack-not-waited-for live kept::a_plan_that_outlives_the_merge_of_the_tip_does_not_end_its_writes
past=chain::past::tests
hunt pin-left-by-the-merge lib $past::a_plan_that_outlives_the_merge_of_the_tip_keeps_what_it_names_in_the_parent
hunt pin-left-by-the-merge lib $past::a_read_that_outlives_the_merge_of_the_tip_reads_no_others_bytes
hunt pin-left-by-the-merge lib $past::tables_that_are_waited_for_over_the_end_of_a_merge_keep_what_the_plan_found
hunt pin-left-by-a-merge-that-failed lib $past::a_plan_that_outlives_a_merge_that_is_stopped_keeps_what_it_names_in_the_parent
hunt pin-left-by-the-merge lib $past::a_plan_that_a_merge_in_low_space_gives_up_for_keeps_what_it_names_in_the_child
hunt older-stacks-forgotten lib $past::a_merge_is_refused_however_often_it_is_tried_while_its_parent_is_read_as_it_was
hunt rights-of-the-operation live rights::a_chain_opened_for_reading_takes_no_write_before_during_and_after_a_merge
hunt image-of-a-layer-writes live rights::only_the_chain_itself_takes_writes_while_its_layers_are_merged
hunt callers-panic-not-caught live panics::a_merge_whose_callback_panics_can_be_resumed_on_the_same_chain
hunt callers-panic-not-caught live panics::a_reparent_and_an_acceptance_whose_callbacks_panic_leave_all_as_it_was
lost=lost::what_was_written_after_it_was_merged_is_lost_with_the_child_and_not_what_it_was_before
hunt moved-past-newer-writes live $lost
hunt moved-under-any-identity live $lost
hunt name-taken-for-the-file swaps nobody_is_sent_to_a_file_that_took_the_name_of_the_merged_parent
hunt not-looked-at-again-before-a-merge locks again::a_merge_looks_again_at_each_layer_once_it_has_the_lock
hunt children-not-looked-for-again locks again::a_merge_looks_for_children_again_once_it_has_the_lock
hunt children-not-looked-for-again locks again::a_revert_looks_for_children_again_before_it_removes_a_layer
hunt name-not-looked-at-again locks again::an_image_is_looked_at_once_it_is_locked_for_writing
hunt name-not-looked-at-again locks again::a_reparent_looks_again_once_it_has_the_lock
hunt parent-not-looked-at-again locks again::a_parent_written_to_before_it_is_locked_is_no_parent_any_more
hunt relink-without-second-look locks again::a_relink_looks_again_once_it_has_the_lock
release=write::punch::tests
hunt punched-before-durable lib $release::what_is_released_is_the_parents_and_its_space_the_hosts
hunt punched-under-readers lib $release::nothing_is_punched_under_a_reader
hunt replayed-before-its-claims pending a_log_is_not_replayed_into_an_image_that_is_refused_for_its_claims
hunt replayed-before-its-claims pending operations_replay_no_log_into_an_image_that_they_are_refused_for
hunt replayed-before-the-list pending a_log_is_replayed_when_it_is_agreed_to_what_is_lost_and_no_sooner
settled=loss::a_crash_while_a_loss_is_settled_leaves_the_image_as_it_was_or_mended
hunt copies-before-losses crash $settled
hunt grown-before-the-mend crash $settled
hunt grown-with-the-first-part crash loss::a_crash_between_two_parts_of_a_mend_leaves_each_block_lost_or_mended
hunt mend-not-flushed crash $settled
hunt mend-keeps-identity crash $settled
hunt mend-before-its-list crash $settled
hunt list-not-flushed crash $settled
hunt later-pieces-misplaced large merges::a_run_longer_than_any_piece_is_merged_whole
hunt temporary-file-taken-for-child left_overs nobody_takes_what_was_left_behind_for_a_child
hunt temporary-file-in-the-forest left_overs nobody_takes_what_was_left_behind_for_a_child
hunt temporary-file-relinked left_overs nobody_takes_what_was_left_behind_for_a_child
hunt temporary-file-taken-for-parent forest files_that_are_not_complete_are_nobodys_relatives
hunt loop-not-seen-by-the-chain loops no_chain_is_opened
hunt loop-not-seen-by-the-check loops a_check_finds_the_loop_once
hunt loop-not-seen-by-the-forest loops a_forest_names_all_that_is_in_the_loop
hunt loop-not-seen-by-a-reparent loops a_reparent_gets_an_image_out_of_a_loop_and_none_into_one
hunt loop-not-seen-by-a-relink loops a_relink_ends_and_closes_no_loop
hunt bitmap-not-foreseen live forecasts::a_merge_reads_writes_frees_and_takes_what_its_forecast_says
hunt batch-given-back-early live forecasts::a_merge_reads_writes_frees_and_takes_what_its_forecast_says
hunt lost-once-for-each-layer live forecasts::a_merge_reads_writes_frees_and_takes_what_its_forecast_says
hunt one-resize-foreseen live forecasts::a_merge_of_disks_of_several_sizes_takes_what_its_forecast_says
hunt smaller-disk-not-foreseen live forecasts::a_merge_of_disks_of_several_sizes_takes_what_its_forecast_says
hunt holes-given-back live forecasts::what_is_a_hole_is_neither_counted_as_there_nor_as_given_back
hunt holes-not-filled live forecasts::what_is_a_hole_is_neither_counted_as_there_nor_as_given_back
hunt table-not-foreseen live forecasts::a_checkpoint_and_a_revert_take_and_free_what_their_forecasts_say
hunt layer-freed-twice live forecasts::a_checkpoint_and_a_revert_take_and_free_what_their_forecasts_say
hunt one-parent-read live forecasts::a_reparent_reads_and_writes_what_its_forecast_says
hunt small-zeros-by-hand bounds small_zeros_of_the_log_over_a_hole_take_no_space
hunt denied-folders-taken-for-empty children a_folder_that_may_not_be_listed_is_not_one_without_children
hunt denied-folders-taken-for-empty children a_revert_removes_nothing_that_may_have_a_child
hunt damaged-children-taken-for-none children a_child_that_does_not_open_as_it_is_is_not_taken_for_none
hunt children-of-the-unproven-ignored children an_image_with_children_gets_no_other_disk_by_an_unproven_link
hunt tip-of-another-taken children a_chain_that_was_given_the_tip_of_another_changes_nothing_of_it
hunt folder-not-tried-before children nothing_is_replaced_in_a_folder_that_cannot_be_made_durable
